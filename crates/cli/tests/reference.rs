//! Tests of the reference of the policy language: every example compiles, or is refused with the message
//! that follows it in the text. The reference lists every key, word and limit of the language, every group
//! of registers, and every gap in KVM's filter.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::process::Command;

use msrgate_filter::{Bitmap, MAX_RANGES};
use msrgate_policy::lint::Code;
use msrgate_policy::registers::{self, GapKind};
use msrgate_policy::{
    IncludeError, Includes, MAX_BYTES, MAX_DEPTH, MAX_ENTRIES, MAX_FILES, MAX_LINE, MAX_TABLES,
    MAX_TOKENS, Mistake, MistakeKind, NoIncludes, Source, compile, parse,
};

const REFERENCE: &str = include_str!("../../../docs/policy-reference.md");
const HEAD: &str = "policy  = 1\ndefault = \"deny\"\n";

/// A fenced block of the reference: the words after its opening fence, and its text.
#[derive(Clone)]
struct Block {
    kind: &'static str,
    text: &'static str,
}

fn blocks() -> Vec<Block> {
    let fenced = REFERENCE.split("\n```").skip(1).step_by(2);
    let block = |block: &'static str| {
        let (kind, text) = block.split_once('\n').expect("a line of its own");
        Block { kind, text }
    };
    fenced.map(block).collect()
}

/// The files that the reference's examples may include: files that the reference shows, and shipped
/// policies.
struct Shown(BTreeMap<&'static str, &'static str>);

impl Shown {
    fn new() -> Self {
        let files = blocks().into_iter().filter_map(|block| {
            let name = block.kind.strip_prefix("toml,file=")?;
            Some((name, block.text))
        });
        Self(files.collect())
    }
}

impl Includes for Shown {
    fn open(&mut self, _: &Source, path: &str) -> Result<Source, IncludeError> {
        if let Some(text) = self.0.get(path) {
            return Ok(Source::new(path, text));
        }
        let file = format!("{}/../../policies/{path}.toml", env!("CARGO_MANIFEST_DIR"));
        let text =
            fs::read_to_string(file).map_err(|error| IncludeError::new(error.to_string()))?;
        Ok(Source::new(path, &text))
    }
}

/// Returns the message about a policy, formatted as in the reference, or an empty text if the policy
/// compiles.
fn said_of(text: &str) -> String {
    let is_whole = text.lines().any(|line| line.starts_with("policy"));
    let text = if is_whole {
        text.to_owned()
    } else {
        format!("{HEAD}{text}")
    };
    match parse(&Source::new("policy.toml", &text), &mut Shown::new()) {
        Ok(policy) => match compile(policy) {
            Ok(_) => String::new(),
            Err(error) => format!("{error}\n"),
        },
        Err(mistakes) => mistakes
            .mistakes()
            .iter()
            .fold(String::new(), |mut all, mistake| {
                let _ = writeln!(all, "{}", mistake.kind());
                let help = mistake.kind().help().into_iter();
                all.extend(help.map(|help| format!("  {help}\n")));
                all
            }),
    }
}

#[test]
fn every_reference_example_compiles_or_is_refused_as_stated() {
    let blocks = blocks();
    let mut counts = [0, 0];
    for (number, block) in blocks.iter().enumerate() {
        match block.kind {
            "toml" => {
                assert_eq!(said_of(block.text), "", "{}", block.text);
                counts[0] += 1;
            }
            "toml,error" => {
                let message = blocks.get(number + 1).expect("the message");
                assert_eq!(message.kind, "text", "the message of {}", block.text);
                assert_eq!(
                    said_of(block.text).trim_end(),
                    message.text,
                    "{}",
                    block.text
                );
                counts[1] += 1;
            }
            "text" => assert_eq!(blocks[number - 1].kind, "toml,error"),
            // `tests/docs.rs` compares the picture.
            "text,picture" => {}
            file => {
                let name = file.strip_prefix("toml,file=").expect("a known kind");
                let includes = format!("include = [\"{name}\"]");
                assert!(
                    blocks.iter().any(|one| one.text.contains(&includes)),
                    "{name}"
                );
            }
        }
    }
    assert!(counts[0] >= 12 && counts[1] >= 6, "{counts:?}");
}

/// Each worked example of the reference passes `msrgate test` on the model of KVM. `msrgate check` gives no
/// warning about it, except that a pinned register disturbs kexec.
#[test]
fn every_worked_example_of_reference_passes_msrgate_test_on_model_of_kvm() {
    let (_, worked) = REFERENCE.split_once("## Worked examples").expect("them");
    let examples = blocks().into_iter().filter(|one| worked.contains(one.text));
    let msrgate = |arguments: &[&str], policy: &str| {
        let mut file = tempfile::NamedTempFile::new().expect("a file");
        file.write_all(policy.as_bytes()).expect("written");
        let mut command = Command::new(env!("CARGO_BIN_EXE_msrgate"));
        let output = command.args(arguments).arg(file.path()).output();
        let output = output.expect("msrgate runs");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{policy}\n{text}");
        text
    };
    let mut count = 0;
    for example in examples {
        msrgate(&["test", "--backend", "model"], example.text);
        let checked = msrgate(&["check", "--host", "none"], example.text);
        let warnings = checked.lines().filter(|line| line.starts_with("warning"));
        let others: Vec<_> = warnings.filter(|line| !line.contains("kexec")).collect();
        assert!(others.is_empty(), "{others:#?}");
        count += 1;
    }
    assert_eq!(count, 3);
}

/// The reference has a section about an organisation's baseline, with three examples. The policy
/// `team.toml`, which includes the fragment `baseline.toml`, passes `check --within ceiling.toml`. A policy
/// that does not include the fragment fails the check.
#[test]
fn check_within_ceiling_policy_passes_policy_that_includes_baseline_and_fails_other() {
    let (_, section) = REFERENCE
        .split_once("## An organisation's baseline")
        .expect("it");
    let blocks = blocks()
        .into_iter()
        .filter(|one| section.contains(one.text));
    let of_kind = |kind: &str| -> Vec<&str> {
        let blocks = blocks.clone().filter(|one| one.kind == kind);
        blocks.map(|one| one.text).collect()
    };
    let (fragments, policies) = (of_kind("toml,file=baseline.toml"), of_kind("toml"));
    let folder = tempfile::tempdir().expect("a folder");
    let without = "policy = 1\ndefault = 'deny'\ninclude = ['linux-boot']\n";
    for (name, text) in [
        ("baseline.toml", fragments[0]),
        ("team.toml", policies[0]),
        ("ceiling.toml", policies[1]),
        ("without.toml", without),
    ] {
        fs::write(folder.path().join(name), text).expect("written");
    }
    for (policy, code) in [("team.toml", 0), ("without.toml", 1)] {
        let output = Command::new(env!("CARGO_BIN_EXE_msrgate"))
            .args([
                "check",
                policy,
                "--within",
                "ceiling.toml",
                "--host",
                "none",
            ])
            .current_dir(folder.path())
            .output()
            .expect("msrgate runs");
        assert_eq!(output.status.code(), Some(code), "{policy}: {output:?}");
    }
}

/// Returns the rows of tables whose first cell is code that starts with `start`.
fn rows(start: &str) -> Vec<&'static str> {
    let start = format!("| `{start}");
    REFERENCE
        .lines()
        .filter(|line| line.starts_with(&start))
        .collect()
}

#[test]
fn every_register_group_is_in_reference() {
    let groups = registers::groups().iter();
    let expected: Vec<_> = groups
        .map(|group| format!("| `{}` | {} |", group.name, group.summary))
        .collect();
    assert_eq!(rows("@"), expected);
}

#[test]
fn every_gap_and_every_warning_is_in_reference_and_can_be_accepted() {
    let gaps = registers::gaps().filter(|gap| gap.kind != GapKind::Use);
    let mut names = BTreeSet::from(["state-not-migrated"]);
    for gap in gaps {
        let row = format!(
            "| `{}` | {} | {} | {} |",
            gap.name, gap.why, gap.on, gap.kernels
        );
        assert!(REFERENCE.lines().any(|line| line == row), "{row}");
        names.insert(gap.name);
    }
    let codes = Code::ALL.into_iter();
    names.extend(
        codes
            .filter(|code| code.is_accepted_by_word())
            .map(Code::word),
    );
    assert_eq!(
        offered("accept = [\"?\"]"),
        names.iter().map(|&name| name.to_owned()).collect()
    );
    for name in names {
        assert_eq!(said_of(&format!("{HEAD}accept = [\"{name}\"]")), "");
        assert!(REFERENCE.contains(&format!("`{name}`")), "{name}");
    }
}

/// Returns the words that the parser's message about this policy offers in place of an unknown word.
fn offered(text: &str) -> BTreeSet<String> {
    let said = said_of(&format!("{HEAD}{text}"));
    // There is only one device, so its message has no list.
    let list = said
        .split_once("may be ")
        .or_else(|| said.split_once("the only device is "));
    let (_, list) = list.expect(&said);
    list.split(", ")
        .map(|word| word.trim().trim_matches(['`', '"']).to_owned())
        .collect()
}

/// The reference has every key and word that the parser offers in place of a misspelt one.
#[test]
fn every_key_and_word_of_policy_language_is_in_reference() {
    let microcode = "[device.microcode]\nrevision = 1\nupdate = \"accept\"\n";
    let mut count = 0;
    for text in [
        "zzzzzz = 1",
        "mode = \"zzzzzz\"",
        "log = \"zzzzzz\"",
        "unknown = \"zzzzzz\"",
        "unknown = { zzzzzz = 1 }",
        "[device.zzzzzz]",
        "[device.microcode]\nzzzzzz = 1",
        "[device.microcode]\nrevision = 1\nupdate = \"zzzzzz\"",
        "[[when]]\nzzzzzz = 1\n",
        "[[when]]\ncpu = { zzzzzz = 1 }\n",
        "[msrs]\n0x10 = \"zzzzzz\"",
        "[msrs]\n0x10 = { zzzzzz = 1 }",
        "[msrs]\n0x10 = { read = \"zzzzzz\", write = \"deny\" }",
        "[msrs]\n0x10 = { read = { zzzzzz = 1 }, write = \"deny\" }",
        "[msrs]\n0x10 = { register = { zzzzzz = 1, reset = 0, mask = 0 } }",
        "[msrs]\n0x10 = { read = \"deny\", write = { mask = 1, outside = \"zzzzzz\" } }",
    ] {
        for word in offered(text) {
            let written = [
                format!("`{word}`"),
                format!("\"{word}\""),
                format!("{word} = "),
            ];
            let has = written.iter().any(|written| REFERENCE.contains(written));
            assert!(has, "`{word}`, which `{text}` was offered");
            count += 1;
        }
    }
    assert!(count > 50, "only {count} words");
    assert_eq!(said_of(&format!("{HEAD}{microcode}")), "");
}

#[test]
fn every_msr_that_policy_may_forward_to_kvm_is_in_reference() {
    let (_, rest) = REFERENCE
        .split_once("both writes are known to have the same effect:")
        .expect("the list");
    let (list, _) = rest.split_once('.').expect("its end");
    let listed: BTreeSet<_> = list.split('`').skip(1).step_by(2).collect();
    let forwarded = registers::all()
        .iter()
        .filter(|register| register.forward().is_some());
    assert_eq!(listed, forwarded.map(|register| register.name).collect());
}

/// Returns the limit that this policy's text exceeds, from the parser's message.
fn limit_of(text: &str) -> usize {
    let source = Source::new("policy.toml", &format!("{HEAD}{text}"));
    let read = parse(&source, &mut NoIncludes).map(|_| "a policy within all limits");
    let mistakes = read.expect_err("too many");
    let mut kinds = mistakes.mistakes().iter().map(Mistake::kind);
    let limit = kinds.find_map(|kind| match kind {
        MistakeKind::TooMany { limit, .. } => Some(*limit),
        _ => None,
    });
    limit.expect("a limit")
}

#[test]
fn every_limit_on_policies_is_in_reference() {
    let times = |count: usize, line: fn(usize) -> String| (0..count).map(line).collect::<String>();
    let groups = times(501, |n| {
        format!(
            "[msrs.\"@mtrr{}\"]\nread = \"deny\"\nwrite = \"deny\"\n",
            " ".repeat(n)
        )
    });
    let when = |n: usize| format!("[[when]]\ncpu = {{ model = {n} }}\n[when.msrs]\n0x10 = \"r\"\n");
    let entry = |n: usize| format!("{:#x} = \"r\"\n", 0x1_0000 + n);
    let bits = |n: usize| {
        let some: Vec<_> = (0..128).filter(|model| model >> n & 1 == 1).collect();
        format!("[[when]]\ncpu = {{ model = {some:?} }}\n[when.msrs]\n0x10 = \"r\"\n")
    };
    let numbers = |count| format!("[{}]", times(count, |n| format!("{},\n", 2 * n)));
    let apart = format!(
        "[[when]]\ncpu.family = {}\ncpu.model = {}\ncpu.stepping = {}\n[when.msrs]\n0x10 = \"r\"\n",
        numbers(130),
        numbers(128),
        numbers(8),
    );
    for (what, limit) in [
        ("ranges of a filter", MAX_RANGES),
        ("MSRs of a range", Bitmap::MAX_COUNT as usize),
        ("files, the policy itself and its includes", MAX_FILES),
        ("bytes of all files together", MAX_BYTES),
        (
            "tokens of TOML in all files together, blanks left out",
            MAX_TOKENS,
        ),
        (
            "tables, lists, and dots of keys in all files together",
            MAX_TABLES,
        ),
        ("bytes of a line", MAX_LINE),
        ("entries, with those of includes", MAX_ENTRIES),
        (
            "entries on all ways in which `[[when]]`s hold, each counted in every way in which it holds",
            limit_of(&format!(
                "[msrs]\n{}{}",
                times(132_000, entry),
                times(31, when)
            )),
        ),
        (
            "entries for groups that are not one range",
            limit_of(&groups),
        ),
        ("files in a row of which each includes the next", MAX_DEPTH),
        ("`[[when]]`s", limit_of(&times(40, when))),
        ("ways in which they hold", limit_of(&times(7, bits))),
        (
            "processors that they tell apart: vendors, times stretches of families, of models and of steppings",
            limit_of(&apart),
        ),
    ] {
        let row = format!("| {what} | {limit} |");
        assert!(REFERENCE.lines().any(|line| line == row), "{row}");
    }
}

/// An include chain of this many files, each of which includes the next file.
struct Row(usize);

impl Includes for Row {
    fn open(&mut self, _: &Source, path: &str) -> Result<Source, IncludeError> {
        let number: usize = path.parse().expect("a number");
        let next = if number + 1 < self.0 {
            format!("include = [\"{}\"]\n", number + 1)
        } else {
            String::new()
        };
        Ok(Source::new(path, &format!("policy = 1\n{next}")))
    }
}

#[test]
fn deepest_include_chain_that_parser_accepts_is_as_reference_says() {
    let source = Source::new("0", &format!("{HEAD}include = [\"1\"]"));
    assert!(parse(&source, &mut Row(MAX_DEPTH)).is_ok());
    assert!(parse(&source, &mut Row(MAX_DEPTH + 1)).is_err());
}

#[test]
fn help_policy_command_prints_reference_of_policy_language() {
    let output = Command::new(env!("CARGO_BIN_EXE_msrgate"))
        .args(["help", "policy"])
        .output()
        .expect("msrgate runs");
    assert!(output.status.success());
    assert_eq!(String::from_utf8_lossy(&output.stdout), REFERENCE);
}
