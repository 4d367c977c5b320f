use super::*;
use crate::{IncludeError, Includes, NoIncludes, Source, compile, parse};

/// Returns the codes of the warnings about a policy, with the lines that they are about.
fn codes(text: &str) -> Vec<(&'static str, Option<u32>)> {
    let source = Source::new("policy.toml", text);
    let policy = parse(&source, &mut NoIncludes).expect("a policy");
    let compiled = compile(policy).expect("a filter");
    let line = |warning: &Warning<'_>| warning.entry.map(|entry| entry.place().line);
    of_policy(&compiled)
        .iter()
        .map(|warning| (warning.code.word(), line(warning)))
        .collect()
}

#[test]
fn every_lint_code_is_in_reference() {
    let reference = include_str!("../../../../docs/policy-reference.md");
    for code in Code::ALL {
        let row = format!("\n| `{}` | {}", code.word(), code.about());
        assert!(reference.contains(&row), "{row}");
    }
}

#[test]
fn lint_of_policies_gives_each_code_of_warning() {
    let text = "policy = 1
default = 'deny'
[msrs]
'0x10..=0x11' = 'r'
0x10 = { read = 'inherit', write = 'inherit' }
'0x30000..=0x30001' = 'r'
'0x174..=0x500' = { read = 'deny', write = 'ignore' }
'0x600..=0x7ff' = 'r'
'0x5000..=0x7fff' = 'none'
IA32_LSTAR = { read = 'allow', write = 'pin' }
IA32_TSC_DEADLINE = 'r'
'0x176..=0x177' = 'r'
0x176 = 'rw'
0x177 = 'w'
";
    assert_eq!(
        codes(text),
        [
            ("says-nothing", Some(5)),
            ("decides-nothing", Some(12)),
            ("nameless", Some(6)),
            ("nameless", Some(9)),
            ("nameless", Some(14)),
            ("gap", Some(11)),
            ("pin-kexec", Some(10)),
            ("changed-unasked", Some(10)),
            ("state-not-migrated", Some(10)),
        ]
    );
}

/// An include whose path differs from the policy's path only in bytes that are not UTF-8 has the
/// same name in messages. If an entry of this include decides nothing, there is no warning.
#[test]
fn lint_ignores_included_entry_without_effect_if_include_is_named_like_policy() {
    struct Base;
    impl Includes for Base {
        fn open(&mut self, _: &Source, _: &str) -> Result<Source, IncludeError> {
            let text = "policy = 1\n[msrs]\n'0x10..=0x11' = 'r'\n";
            Ok(Source::new("\u{fffd}.toml", text).with_identity(b"\xfe.toml"))
        }
    }
    let text = "policy = 1\ndefault = 'deny'\ninclude = ['x.toml']\n[msrs]\n'0x10' = 'rw'\n'0x11' = 'rw'\n";
    let source = Source::new("\u{fffd}.toml", text).with_identity(b"\xff.toml");
    let compiled = compile(parse(&source, &mut Base).expect("a policy")).expect("a filter");
    let codes = of_policy(&compiled);
    let codes: Vec<_> = codes.iter().map(|warning| warning.code.word()).collect();
    assert!(!codes.contains(&"decides-nothing"), "{codes:?}");
}

#[test]
fn lint_too_wide_warns_of_range_far_beyond_named_registers() {
    let wide = |key: &str, word: &str| {
        let text = format!(
            "policy = 1\ndefault = 'deny'\naccept = ['tsc-deadline-fastpath']\n[msrs]\n'{key}' = '{word}'"
        );
        codes(&text).contains(&("too-wide", Some(5)))
    };
    // No MSR between 0x2ff2 and 0x40000000 has a name.
    assert!(wide("0x2ff0..=0x4fff", "r"));
    assert!(wide("0x2ff0..=0x4fff", "w"));
    assert!(!wide("0x2ff0..=0x4fff", "none"), "a wide refusal is fine");
    assert!(!wide("0x1900..=0x1a00", "rw"), "some slack is fine");
    assert!(!wide("@mtrr", "rw"));
}

/// Returns the messages of the warnings of a kind, with the lines that they are about.
fn said(text: &str, code: Code) -> Vec<(u32, String)> {
    let source = Source::new("policy.toml", text);
    let policy = parse(&source, &mut NoIncludes).expect("a policy");
    let compiled = compile(policy).expect("a filter");
    let warnings = of_policy(&compiled).into_iter();
    let of_code = warnings.filter(|warning| warning.code == code);
    let line = |warning: &Warning<'_>| warning.entry.map_or(0, |entry| entry.place().line);
    of_code
        .map(|warning| (line(&warning), warning.message))
        .collect()
}

#[test]
fn lint_changed_unasked_warns_of_register_that_other_instructions_write() {
    let text = "policy = 1
default = 'allow'
accept = []
[msrs]
IA32_CSTAR = { read = 'allow', write = 'pin' }
'IA32_STAR..=IA32_LSTAR' = { read = 'allow', write = 'pin' }
IA32_FMASK = { read = 'allow', write = 'sticky' }
IA32_FS_BASE = { read = 'allow', write = { mask = '0xffff' } }
IA32_KERNEL_GS_BASE = { read = 'allow', write = 'ignore' }
[[when]]
cpu = { vendor = 'GenuineIntel' }
[when.msrs]
IA32_FMASK = { read = 'allow', write = 'pin', override = true }
";
    // Each gap has one warning, whatever the processor.
    let expected = [
        (8, "`mask` of IA32_FS_BASE applies to WRMSR only: RDFSBASE "),
        (
            8,
            "`mask` of IA32_FS_BASE applies to WRMSR only: a nested VM entry ",
        ),
        (
            5,
            "`mask`, `pin`, `sticky` of IA32_STAR, IA32_LSTAR, IA32_CSTAR, IA32_FMASK, IA32_FS_BASE apply to WRMSR only: VMLOAD ",
        ),
    ];
    let found = said(text, Code::ChangedUnasked);
    assert_eq!(found.len(), expected.len(), "{found:#?}");
    for ((line, message), (at, start)) in found.iter().zip(expected) {
        assert!(
            *line == at && message.starts_with(start),
            "{line}: {message}"
        );
    }
    let accepting = |gaps: &str| {
        let text = text.replacen("accept = []", &format!("accept = [{gaps}]"), 1);
        said(&text, Code::ChangedUnasked).len()
    };
    assert_eq!(accepting("'vmload'"), 2);
    assert_eq!(accepting("'vmload', 'vmcs', 'segment-base'"), 0);
}

#[test]
fn lint_revision_unread_warns_of_unreadable_revision() {
    let with = |entries: &[&str]| {
        let head = "policy = 1\ndefault = 'deny'\n[device.microcode]\nrevision = 1\nupdate = 'accept'\n[msrs]\n";
        said(
            &format!("{head}{}", entries.join("\n")),
            Code::RevisionUnread,
        )
    };
    let (intel, amd) = (
        "0x79 = { device = 'microcode' }",
        "0xc0010020 = { device = 'microcode' }",
    );
    let none: [(u32, String); 0] = [];
    for seen in [
        "0x8b = 'rw'",
        "0x8b = { read = 'allow', write = 'ignore' }",
        "0x8b = { read = { handler = 'mine' }, write = { handler = 'mine' } }",
    ] {
        assert_eq!(with(&[intel, amd, seen]), none, "{seen}");
    }
    assert_eq!(with(&[amd, "0x8b = 'r'"]), none, "AMD's is not cleared");
    assert_eq!(with(&["0x79 = 'r'", "0x8b = 'none'"]), none, "no device");
    for (entries, line, is) in [
        (
            &[intel][..],
            7,
            "reads of 0x8b IA32_BIOS_SIGN_ID is \"deny\"",
        ),
        (&[amd], 7, "reads of 0x8b IA32_BIOS_SIGN_ID is \"deny\""),
        (
            &["0x8b = 'r'", intel],
            8,
            "writes of 0x8b IA32_BIOS_SIGN_ID is \"deny\"",
        ),
        (
            &["0x8b = { read = { value = 7 }, write = 'allow' }", amd],
            8,
            "reads of 0x8b IA32_BIOS_SIGN_ID is { value = \"0x7\" }",
        ),
        // The warning is given even if the revision is unreadable on some processors only.
        (
            &[
                "0x8b = 'rw'",
                intel,
                "[[when]]",
                "cpu = { vendor = 'GenuineIntel' }",
                "[when.msrs]",
                "0x8b = { read = 'deny', write = 'allow', override = true }",
            ],
            8,
            "reads of 0x8b IA32_BIOS_SIGN_ID is \"deny\"",
        ),
    ] {
        let found = with(entries);
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].0 == line && found[0].1.ends_with(is), "{found:?}");
    }
}

/// An opener of included texts that returns the same text for every path.
struct Only(&'static str);

impl Includes for Only {
    fn open(&mut self, _: &Source, path: &str) -> Result<Source, IncludeError> {
        Ok(Source::new(path, self.0))
    }
}

#[test]
fn lint_punctured_names_included_entry_and_remedy() {
    let text = "policy = 1
default = 'deny'
accept = ['tsc-deadline-fastpath']
include = ['guest.toml']
[msrs]
'@power' = 'none'
'0x30000..=0x3ffff' = { read = { value = 0 }, write = 'kill' }
";
    let guest = "policy = 1
[msrs]
'IA32_MPERF..=IA32_APERF' = 'r'
'0x30010..=0x30011' = { read = 'deny', write = 'ignore' }
IA32_THERM_STATUS = { read = 'kill', write = 'allow' }
";
    let policy = parse(&Source::new("policy.toml", text), &mut Only(guest)).expect("a policy");
    let compiled = compile(policy).expect("a filter");
    let warnings = of_policy(&compiled).into_iter();
    let found: Vec<_> = warnings
        .filter(|warning| warning.code == Code::Punctured)
        .map(|warning| {
            let line = warning.entry.map_or(0, |entry| entry.place().line);
            (line, warning.message, warning.details, warning.help)
        })
        .collect();
    let expected = [
        (
            6,
            "the included entry `IA32_MPERF..=IA32_APERF` at guest.toml:3 lies within `@power` and loosens it: the action for reads of 0xe7 IA32_MPERF, 0xe8 IA32_APERF is \"allow\", not \"deny\"",
            "read of 0xe7..=0xe8",
            "\"IA32_MPERF..=IA32_APERF\" = { read = \"deny\", write = \"deny\", override = true }",
        ),
        (
            7,
            "the included entry `0x30010..=0x30011` at guest.toml:4 lies within `0x30000..=0x3ffff` and loosens it: the action for writes of 0x30010..=0x30011 is \"ignore\", not \"kill\"",
            "write of 0x30010..=0x30011",
            "\"0x30010..=0x30011\" = { read = \"deny\", write = \"kill\", override = true }",
        ),
        (
            6,
            "the included entry `IA32_THERM_STATUS` at guest.toml:5 lies within `@power` and loosens it: the action for writes of 0x19c IA32_THERM_STATUS is \"allow\", not \"deny\"",
            "write of 0x19c",
            "IA32_THERM_STATUS = { read = \"kill\", write = \"deny\", override = true }",
        ),
    ];
    let expected: Vec<_> = expected
        .into_iter()
        .map(|(line, message, detail, entry)| {
            let help = format!("write `{entry}` below `[msrs]` of policy.toml; if the included entry is right, copy it there unchanged");
            (line, message.to_owned(), vec![detail.to_owned()], help)
        })
        .collect();
    assert_eq!(found, expected);
}

/// A message stays short even if there are many registers.
#[test]
fn lint_punctured_lists_registers_up_to_limit_and_counts_the_rest() {
    let text =
        "policy = 1\ndefault = 'deny'\ninclude = ['guest.toml']\n[msrs]\n'0x0..=0x7ff' = 'none'\n";
    let guest = "policy = 1\n[msrs]\n'@mtrr' = 'r'\n";
    let policy = parse(&Source::new("policy.toml", text), &mut Only(guest)).expect("a policy");
    let compiled = compile(policy).expect("a filter");
    let all = of_policy(&compiled);
    let warning = all.iter().find(|warning| warning.code == Code::Punctured);
    let message = &warning.expect("a warning").message;
    let end = "0x205 IA32_MTRR_PHYSMASK2, 0x206 IA32_MTRR_PHYSBASE3 and 25 more is \"allow\", not \"deny\"";
    assert!(message.ends_with(end), "{message}");
    assert!(message.len() < 400, "{message}");
}

/// Policies that have, together, each kind of warning that does not depend on a host. The second text is included
/// by the first.
const WARNED: [(&str, &str); 2] = [
    (
        "policy = 1
default = 'deny'
include = ['guest.toml']
[msrs]
'0x10..=0x11' = 'r'
0x10 = { read = 'inherit', write = 'inherit' }
'0x30000..=0x30001' = 'r'
'0x2ff0..=0x4fff' = 'r'
IA32_LSTAR = { read = 'allow', write = 'pin' }
'0x176..=0x177' = 'r'
0x176 = 'rw'
0x177 = 'w'
'@power' = 'none'
0x79 = { device = 'microcode' }
[device.microcode]
revision = 1
update = 'accept'
",
        "policy = 1
[msrs]
IA32_MPERF = 'r'
",
    ),
    (
        "policy = 1
default = 'allow'
[msrs]
IA32_FS_BASE = { read = 'allow', write = { mask = '0xffff' } }
IA32_TSC_DEADLINE = 'r'
",
        "",
    ),
];

/// Returns what accepts each warning about a policy that includes `guest`, with the kind of the warning.
fn acceptable(text: &str, guest: &'static str) -> Vec<(&'static str, Code)> {
    let source = Source::new("policy.toml", text);
    let policy = parse(&source, &mut Only(guest)).unwrap_or_else(|why| panic!("{text}: {why:?}"));
    let compiled = compile(policy).expect("a filter");
    let warnings = of_policy(&compiled).into_iter();
    warnings.map(|one| (one.accept, one.code)).collect()
}

#[test]
fn every_lint_warning_is_accepted_by_its_name() {
    let mut kinds = Vec::new();
    for (text, guest) in WARNED {
        let all = acceptable(text, guest);
        for &(name, code) in &all {
            let accepting = format!("accept = ['{name}']\n{text}");
            let mut others = all.clone();
            others.retain(|(other, _)| *other != name);
            assert_eq!(acceptable(&accepting, guest), others, "{name}");
            kinds.push(code);
        }
    }
    for code in Code::ALL {
        let is_of_host = [Code::CpuidRefused, Code::NotSaved].contains(&code);
        assert_ne!(kinds.contains(&code), is_of_host, "{code:?}");
    }
}

/// An include may accept gaps, which its own entries need, but no warnings: it could hide what it does to the
/// policy.
#[test]
fn accepted_warning_of_include_does_not_count() {
    let (text, guest) = WARNED[0];
    let accepting = "policy = 1
accept = ['punctured', 'pin-kexec', 'tsc-deadline-fastpath', 'state-not-migrated']
[msrs]
IA32_MPERF = 'r'
";
    let mut without_gaps = acceptable(text, guest);
    without_gaps.retain(|(_, code)| ![Code::Gap, Code::StateNotMigrated].contains(code));
    assert_eq!(acceptable(text, accepting), without_gaps);
}

/// The program, and so `diff` and `check --within`, has the accepted gaps and not the accepted warnings.
#[test]
fn accepted_warnings_do_not_change_program() {
    let text = "policy = 1\ndefault = 'deny'\naccept = ['vmload', ACCEPTED]\n[msrs]\n0x10 = 'r'\n";
    let program = |accepted: &str| {
        let text = text.replace("ACCEPTED", accepted);
        let source = Source::new("policy.toml", &text);
        let policy = parse(&source, &mut NoIncludes).expect("a policy");
        compile(policy).expect("a filter").into_program()
    };
    assert_eq!(program(""), program("'pin-kexec', 'punctured'"));
    assert_ne!(program(""), program("'vmcs'"));
}

/// In audit mode a refusal is only recorded, and the warnings say so.
#[test]
fn lint_of_audit_does_not_say_that_access_is_refused() {
    let text = "policy = 1
default = 'deny'
mode = 'audit'
[msrs]
IA32_LSTAR = { read = 'allow', write = 'pin' }
0x79 = { device = 'microcode' }
[device.microcode]
revision = 1
update = 'accept'
";
    for (code, start) in [
        (
            Code::Gap,
            "writes of 0x6e0 IA32_TSC_DEADLINE can go unrecorded in the audit of `deny`: ",
        ),
        (
            Code::PinKexec,
            "with `mode = \"enforce\"` a second kernel, which the guest starts by kexec, could not write another value to the pinned registers IA32_LSTAR; ",
        ),
        (
            Code::RevisionUnread,
            "`0x79` takes microcode updates, but with `mode = \"enforce\"` the guest could not read their revision: ",
        ),
    ] {
        let found = said(text, code);
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].1.starts_with(start), "{found:?}");
    }
}

/// One warning is about all pinned registers, and one about all state.
#[test]
fn lint_lists_pins_and_state_in_one_warning_each() {
    let text = "policy = 1
default = 'deny'
[msrs]
'0x174..=0x176' = { read = 'allow', write = 'pin' }
'IA32_STAR..=IA32_FMASK' = { read = 'allow', write = 'pin' }
IA32_STAR = 'rw'
0x10000 = { register = { reset = 0, mask = 1 } }
'0x174..=0x177' = { read = 'allow', write = 'inherit' }
";
    let pins = said(text, Code::PinKexec);
    let names = "IA32_SYSENTER_CS, IA32_SYSENTER_ESP, IA32_SYSENTER_EIP, IA32_LSTAR, IA32_CSTAR, IA32_FMASK";
    assert_eq!(pins.len(), 1, "{pins:?}");
    assert!(pins[0].1.ends_with(names), "{pins:?}");
    let state = said(text, Code::StateNotMigrated);
    let keys = "the state of `0x174..=0x176`, `IA32_STAR..=IA32_FMASK`, `0x10000` is lost";
    assert_eq!(state.len(), 1, "{state:?}");
    assert!(state[0].1.starts_with(keys), "{state:?}");
}

#[test]
fn lint_ignores_pin_that_other_entries_replace() {
    let text = "policy = 1
default = 'deny'
[msrs]
'IA32_STAR..=IA32_LSTAR' = { read = 'allow', write = 'pin' }
IA32_STAR = 'rw'
IA32_LSTAR = 'r'
";
    assert_eq!(said(text, Code::PinKexec), []);
    assert_eq!(said(text, Code::StateNotMigrated), []);
}
