//! Mistakes of people who are new to TOML or to msrgate: each has one message with advice.

use crate::{Mistake, NoIncludes, Source, parse};

const HEAD: &str = "policy = 1\ndefault = 'deny'\n";

/// Returns the messages of a text with their advice.
fn said(text: &str) -> Vec<(String, String)> {
    let mistakes = parse(&Source::new("policy.toml", text), &mut NoIncludes).expect_err(text);
    let kinds = mistakes.mistakes().iter().map(Mistake::kind);
    kinds
        .map(|kind| (kind.to_string(), kind.help().unwrap_or_default()))
        .collect()
}

/// Checks that each line, written below `[msrs]`, causes this one message.
fn check_entries(lines: &[(&str, &str, &str)]) {
    for (line, why, help) in lines {
        let text = format!("{HEAD}[msrs]\n{line}\nIA32_PAT = 'r'\n");
        assert_eq!(
            said(&text),
            [((*why).to_owned(), (*help).to_owned())],
            "{line}"
        );
    }
}

fn check_texts(texts: &[(&str, &str, &str)]) {
    for (text, why, help) in texts {
        assert_eq!(
            said(text),
            [((*why).to_owned(), (*help).to_owned())],
            "{text}"
        );
    }
}

#[test]
fn advice_for_unquoted_range_group_or_word_is_to_add_quotes() {
    check_entries(&[
        (
            "0x200..=0x20f = 'r'",
            "`0x200..=0x20f` needs quotes",
            "quote it: `\"0x200..=0x20f\" = 'r'`",
        ),
        (
            "0x200..0x20f = r",
            "`0x200..0x20f` needs quotes",
            "quote it: `\"0x200..=0x20f\" = \"r\"`",
        ),
        (
            "  IA32_SYSENTER_CS..=IA32_SYSENTER_EIP = { read = 'allow', write = 'deny' }",
            "`IA32_SYSENTER_CS..=IA32_SYSENTER_EIP` needs quotes",
            "quote it: `\"IA32_SYSENTER_CS..=IA32_SYSENTER_EIP\" = { read = 'allow', write = 'deny' }`",
        ),
        (
            "@mtrr = 'r'",
            "`@mtrr` needs quotes",
            "quote it: `\"@mtrr\" = 'r'`",
        ),
        (
            "IA32_EFER = rw",
            "`rw` needs quotes",
            "quote it: `IA32_EFER = \"rw\"`",
        ),
        (
            "IA32_EFER = none",
            "`none` needs quotes",
            "quote it: `IA32_EFER = \"none\"`",
        ),
        (
            "IA32_EFER = { read = allow, write = 'deny' }",
            "`allow` needs quotes",
            "quote it: `\"allow\"`",
        ),
        (
            "IA32_EFER = { read = 'deny', write = 'deny', why = who needs it }",
            "`who needs it` needs quotes",
            "quote it: `\"who needs it\"`",
        ),
    ]);
    check_texts(&[
        (
            "policy = 1\ndefault = 'deny'\n[msrs.@cet]\nread = 'allow'\nwrite = 'deny'\n",
            "`@cet` needs quotes",
            "quote it: `[msrs.\"@cet\"]`",
        ),
        (
            "policy = 1\ndefault = deny\n",
            "`deny` needs quotes",
            "quote it: `default = \"deny\"`",
        ),
        (
            "policy = 1\ndefault = 'deny'\n[[when]]\ncpu = { model = 0x6a..=0x6c }\n[when.msrs]\n",
            "`0x6a..=0x6c` needs quotes",
            "quote it: `\"0x6a..=0x6c\"`",
        ),
    ]);
}

#[test]
fn advice_for_line_that_is_not_toml_is_valid_line() {
    check_entries(&[
        (
            "IA32_EFER: 'rw'",
            "`=` joins a key and its value, not `:`",
            "write `IA32_EFER = 'rw'`",
        ),
        (
            "IA32_EFER == 'rw'",
            "the line has a second `=`",
            "delete the second `=`",
        ),
        (
            "IA32_EFER",
            "a key has no value",
            "write `=` and the value after it",
        ),
        (
            "IA32_EFER = { read = 'allow', write = 'deny', final }",
            "a key has no value",
            "write `=` and the value after it",
        ),
        (
            "IA32_EFER = { read = 'allow' write = 'deny' }",
            "a comma is missing in a table",
            "write `,` between the parts of the table, as in `{ read = \"allow\", write = \"deny\" }`, or `}` at its end",
        ),
        (
            "IA32_EFER = { read = 'allow', write = 'deny', final = True }",
            "TOML does not know the word `True`",
            "write `true`",
        ),
        (
            "IA32_EFER = 'rw",
            "a string has no closing quote on this line",
            "write `'` at the end of the string",
        ),
        (
            "IA32_EFER = “rw”",
            "a typographic quote is not a quote of TOML",
            "write `\"`",
        ),
        (
            "// the system call",
            "this is not a comment of TOML",
            "begin a comment with `#`",
        ),
        (
            "IA32_EFER = 'rw';",
            "more text follows the value on this line",
            "begin a new line, or a comment with `#`",
        ),
    ]);
    check_texts(&[(
        "policy = 1\ndefault = 'deny'\n[msrs\nIA32_EFER = 'rw'\n",
        "the header of a table has no `]`",
        "write `[msrs]`",
    )]);
}

#[test]
fn advice_for_misplaced_key_names_its_table() {
    check_texts(&[
        (
            "policy = 1\ndefault = 'deny'\nIA32_EFER = 'rw'\n[msrs]\n",
            "`IA32_EFER` is written above `[msrs]`, where only settings of the policy may be",
            "move it below `[msrs]`",
        ),
        (
            "policy = 1\ndefault = 'deny'\n'@mtrr' = 'rw'\n",
            "`@mtrr` is written above `[msrs]`, where only settings of the policy may be",
            "write `[msrs]` above it, on a line of its own",
        ),
        (
            "policy = 1\ndefault = 'deny'\n[IA32_EFER]\nread = 'allow'\n",
            "`IA32_EFER` is written above `[msrs]`, where only settings of the policy may be",
            "write `[msrs.IA32_EFER]`",
        ),
        (
            "policy = 1\n[msrs]\nIA32_EFER = 'rw'\ndefault = 'deny'\n",
            "`default` is written below `[msrs]`, where each key names MSRs",
            "move it above the first line in brackets, such as `[msrs]`: all lines below such a line belong to its table",
        ),
        (
            "policy = 1\ndefault = 'deny'\n[msrs.read]\nIA32_EFER = 'allow'\n",
            "`read` is written below `[msrs]`, where each key names MSRs",
            "write an entry for each MSR, such as `IA32_PAT = { read = \"allow\", write = \"deny\" }`",
        ),
        (
            "policy = 1\ndefault = 'deny'\n[[when]]\nMSR_PPERF = 'r'\n",
            "`MSR_PPERF` is written directly below `[[when]]`, where only `cpu` and `msrs` may be",
            "write `[when.msrs]` above the entries",
        ),
        (
            "policy = 1\ndefault = 'deny'\n[msrs]\nIA32_STAR = { read = 'allow', write = 'allow', mask = 1 }\n",
            "`mask` is written beside `read` and `write`, but is an action for one of them",
            "write it inside one of them, such as `write = { mask = \"0xff\" }`",
        ),
    ]);
}

#[test]
fn advice_for_typo_in_microcode_device_shows_right_spelling() {
    let device = |lines: &str| {
        format!("{HEAD}{lines}\n[msrs]\nIA32_BIOS_UPDT_TRIG = {{ device = 'microcode' }}\n")
    };
    for (lines, why, help) in [
        (
            "[device.microcod]\nrevision = 1\nupdate = 'accept'",
            "no device is called `microcod`",
            "write `[device.microcode]`: the only device is `microcode`",
        ),
        (
            "[microcode]\nrevision = 1\nupdate = 'accept'",
            "`microcode` is written at the top of the policy, where only settings may be",
            "write `[device.microcode]`",
        ),
        (
            "[device.microcode]\nrevison = 1\nupdate = 'accept'",
            "unknown key `revison`",
            "did you mean `revision`? A key here may be `revision`, `update`",
        ),
        (
            "[device.microcode]\nrevision = 1\nupdate = 'acept'",
            "`update` cannot be \"acept\"",
            "did you mean \"accept\"? `update` may be \"accept\", \"ignore\", \"deny\"",
        ),
        (
            "[device]\nmicrocode = true",
            "`microcode` is a boolean, but must be a table",
            "write `[device.microcode]`",
        ),
    ] {
        check_texts(&[(&device(lines), why, help)]);
    }
}

#[test]
fn advice_for_decimal_index_is_hexadecimal_form() {
    const WHY: &str = "is not an MSR index: an index is hexadecimal and begins with `0x`";
    let decimal = format!("`3221225602` {WHY}");
    let small = format!("`16` {WHY}");
    let bare = format!("`8b` {WHY}");
    check_entries(&[
        ("3221225602 = 'r'", &decimal, "write `0xc0000082`"),
        (
            "16 = 'r'",
            &small,
            "write `0x10`; if the digits are hexadecimal already, write `0x16`",
        ),
        ("8b = 'r'", &bare, "write `0x8b`"),
        (
            "0b11 = 'r'",
            "`0b11` is not an MSR index: an index is hexadecimal, not binary",
            "write `0x3`",
        ),
    ]);
}

/// A proposed range can be parsed, and causes no new mistake.
#[test]
fn advice_with_proposed_range_is_valid_entry() {
    for line in [
        "'0x700..=0x9ff' = 'r'",
        "'0x0..=0xffffffff' = 'r'",
        "'0xfffffff0..=0xffffffff' = 'r'",
        "'0x200-0x20f' = 'r'",
        "'0x20f..0x200' = 'r'",
        "'100..=200' = 'r'",
        "0x200..0x20f = 'r'",
    ] {
        let [(_, help)] = &said(&format!("{HEAD}[msrs]\n{line}\n"))[..] else {
            panic!("{line} has not one message");
        };
        let proposed: Vec<_> = help
            .split('"')
            .filter(|part| part.contains("..="))
            .collect();
        assert!(!proposed.is_empty(), "{line}: {help}");
        for range in proposed {
            let text = format!("{HEAD}[msrs]\n\"{range}\" = 'r'\n");
            let parsed = parse(&Source::new("policy.toml", &text), &mut NoIncludes);
            assert!(parsed.is_ok(), "{line}: {range}");
        }
    }
}

#[test]
fn advice_for_invalid_value_lists_valid_values() {
    check_entries(&[
        (
            "IA32_EFER = 'deny'",
            "`IA32_EFER` cannot be \"deny\"",
            "did you mean \"none\"? `IA32_EFER` may be \"rw\", \"r\", \"w\", \"none\"",
        ),
        (
            "IA32_LSTAR = 'pin'",
            "`IA32_LSTAR` cannot be \"pin\"",
            "write `IA32_LSTAR = { read = \"allow\", write = \"pin\" }`",
        ),
        (
            "IA32_EFER = { read = 'value', write = 'deny' }",
            "`read` cannot be \"value\"",
            "write `read = { value = \"0x0\" }`",
        ),
        (
            "IA32_EFER = { read = 7, write = 'deny' }",
            "`read` is a number, but must be a word or a table",
            "write `read = { value = 7 }`",
        ),
        (
            "IA32_EFER = { read = { value = 'ffff' }, write = 'deny' }",
            "`value` cannot be `ffff`, which is not a number of at most 64 bits",
            "write `0x` before hexadecimal digits: `\"0xffff\"`",
        ),
        (
            "IA32_EFER = { read = { value = '0x1ffffffffffffffff' }, write = 'deny' }",
            "`value` cannot be `0x1ffffffffffffffff`, which is not a number of at most 64 bits",
            "the largest possible number is `\"0xffffffffffffffff\"`",
        ),
        (
            "action = 1",
            "no MSR is called `action`",
            "find the register with `msrgate msr WORD`; an entry looks like `IA32_PAT = \"r\"`",
        ),
    ]);
    check_texts(&[
        (
            "policy = 1\ndefault = 'none'\n",
            "`default` cannot be \"none\"",
            "did you mean \"deny\"? `default` may be \"allow\", \"deny\", \"kill\"",
        ),
        (
            "policy = 1\ndefault = 'allow'\nunknown = { read = 'ignore' }\n",
            "`read` cannot be \"ignore\"",
            "write the number that a read gives, such as `read = 0`, or `read = \"deny\"`",
        ),
        (
            "policy = 1\ndefault = 'deny'\ninclude = 'linux-boot'\n",
            "`include` is a string, but must be a list of strings",
            "write `include = [\"linux-boot\"]`",
        ),
    ]);
}

#[test]
fn advice_for_conflicting_entries_tells_how_to_resolve_conflict() {
    const WHY: &str = "`MSR_PPERF` and `MSR_PPERF` are the same MSR (0x64e), but have different actions for writes";
    let when = "[[when]]\ncpu = { vendor = 'GenuineIntel' }\n[when.msrs]\nMSR_PPERF = 'r'\n";
    let other = "[[when]]\ncpu = { family = 6 }\n[when.msrs]\nMSR_PPERF = 'rw'\n";
    check_texts(&[
        (
            &format!("{HEAD}[msrs]\nMSR_PPERF = 'rw'\n{when}"),
            WHY,
            "write `override = true` in the entry of the `[[when]]`: it then replaces the other entry",
        ),
        (
            &format!("{HEAD}{when}{other}"),
            WHY,
            "both `[[when]]`s hold on some processors: give both entries the same actions, or narrow one `cpu` so that no processor matches both",
        ),
        (
            &format!("{HEAD}[msrs]\n'0x200..=0x20f' = 'r'\n'0x20f..=0x21f' = 'rw'\n"),
            "`0x200..=0x20f` and `0x20f..=0x21f` overlap only in part (0x20f), but have different actions for writes",
            "write `\"0x200..=0x20e\"` in place of `0x200..=0x20f`, or `\"0x210..=0x21f\"` in place of `0x20f..=0x21f`: the narrower of two entries wins only if it lies wholly within the other",
        ),
    ]);
}
