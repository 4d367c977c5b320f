//! Tests of `diff` and `check --within` for two policies whose `[[when]]` sections depend on different parts
//! of a processor's name. A policy has one variant for each combination of `[[when]]`s that can hold. A
//! comparison looks at each pair of a variant of one policy and a variant of the other, so the numbers of
//! variants multiply.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::{Command, Output};

/// The memory in KiB that a comparison needs at most according to the reference: 1.5 GiB.
const MOST_MEMORY: u64 = 3 << 19;

/// Runs `msrgate` with a limit of [`MOST_MEMORY`] on its memory, beyond which the command aborts.
fn msrgate(folder: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new("sh");
    let script = format!("ulimit -v {MOST_MEMORY} && exec \"$0\" \"$@\"");
    command.args(["-c", &script, env!("CARGO_BIN_EXE_msrgate")]);
    command
        .args(arguments)
        .current_dir(folder)
        .env("NO_COLOR", "1");
    command.output().expect("a shell")
}

/// Returns a policy that has 64 variants, depending on `part` of the processor's name. The policy
/// has `entries` more entries with different values, the first of which is `first_value`.
fn in_64_ways(part: &str, entries: u32, first_value: u32) -> String {
    let mut text = "policy = 1\ndefault = \"deny\"\n[msrs]\n".to_owned();
    for entry in 0..entries {
        let (msr, value) = (0x1000_0000 + 2 * entry, first_value + entry);
        writeln!(
            text,
            "{msr:#x} = {{ read = {{ value = {value} }}, write = \"deny\" }}"
        )
        .expect("a string");
    }
    for bit in 0..6 {
        let with_bit: Vec<u32> = (0..64).filter(|number| number >> bit & 1 == 1).collect();
        let msr = 0x100 + bit;
        writeln!(
            text,
            "[[when]]\ncpu = {{ {part} = {with_bit:?} }}\n[when.msrs]\n{msr:#x} = \"r\""
        )
        .expect("a string");
    }
    text
}

#[test]
fn diff_and_check_within_refuse_two_policies_with_too_many_pairs_of_variants() {
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    for (name, part, first_value) in [("a.toml", "model", 0), ("b.toml", "family", 1)] {
        let text = in_64_ways(part, 200, first_value);
        fs::write(folder.join(name), text).expect("a file");
    }
    let too_many =
        "on all processors: the `[[when]]`s of both programs make 4096 pairs of variants with";
    let limit = "but at most 1048576 rules can be compared at once";
    for (arguments, first, advice) in [
        (
            &["diff", "a.toml", "b.toml"][..],
            "a.toml and b.toml cannot be compared",
            "  compare them on one processor: --cpu VENDOR:FAMILY:MODEL[:STEPPING]",
        ),
        (
            &["diff", "--format", "json", "a.toml", "b.toml"],
            "a.toml and b.toml cannot be compared",
            "  compare them on one processor: --cpu VENDOR:FAMILY:MODEL[:STEPPING]",
        ),
        (
            &["check", "--host", "none", "b.toml", "--within", "a.toml"],
            "b.toml cannot be compared with a.toml",
            "  msrgate diff a.toml b.toml --fail-on looser --cpu VENDOR:FAMILY:MODEL[:STEPPING]",
        ),
    ] {
        let output = msrgate(folder, arguments);
        let said = [&output.stdout[..], &output.stderr].concat();
        let said = String::from_utf8_lossy(&said);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {said}");
        for part in [first, too_many, limit, advice] {
            assert!(said.contains(part), "{arguments:?}: {said}");
        }
    }
    let cpu = ["diff", "a.toml", "b.toml", "--cpu", "GenuineIntel:6:5:0"];
    let output = msrgate(folder, &cpu);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    // The answers of 200 MSRs differ, and so do the reads of two more MSRs: family 6 lets 0x101 be read, and
    // model 5 lets 0x100 be read.
    let changes = String::from_utf8_lossy(&output.stdout);
    let changes = changes.lines().filter(|line| line.starts_with("  read "));
    assert_eq!(changes.count(), 202);
}

/// Each policy alone distinguishes few enough processors. Together they distinguish too many, because the
/// numbers multiply, and `diff` refuses to compare them.
#[test]
fn diff_refuses_two_policies_that_together_distinguish_too_many_processors() {
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    let every_other = |most: u32| (0..=most).step_by(2).collect::<Vec<_>>();
    for (name, cpu) in [
        ("a.toml", format!("family = {:?}", every_other(269))),
        (
            "b.toml",
            format!(
                "model = {0:?}, stepping = {1:?}",
                every_other(255),
                every_other(15)
            ),
        ),
    ] {
        let text = format!(
            "policy = 1\ndefault = \"deny\"\n[[when]]\ncpu = {{ {cpu} }}\n[when.msrs]\n0x10 = \"r\"\n"
        );
        fs::write(folder.join(name), text).expect("a file");
    }
    let output = msrgate(folder, &["diff", "a.toml", "b.toml"]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(
        said.contains("kinds of processors, but at most 1048576 can be compared"),
        "{said}"
    );
}

/// A comparison of two policies that have 64 pairs of variants, and whose entries overlap and
/// differ in action and logging, needs no more memory than the reference says.
#[test]
fn diff_of_policies_with_64_pairs_of_variants_needs_no_more_memory_than_documented() {
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    for (name, offset, log) in [("a.toml", 0, "all"), ("b.toml", 1, "none")] {
        let mut entries = String::new();
        for entry in 0..3_900 {
            let first = 0x1000_0000 + 2 * entry + offset;
            let value = 2 * entry + offset;
            writeln!(
                entries,
                "\"{first:#x}..={:#x}\" = {{ read = {{ value = {value} }}, write = {{ handler = \"h{value}\" }}, log = \"{log}\" }}",
                first + 1
            )
            .expect("a string");
        }
        let text = in_64_ways("model", 0, 0).replace("[msrs]\n", &format!("[msrs]\n{entries}"));
        fs::write(folder.join(name), text).expect("a file");
    }
    let output = msrgate(folder, &["diff", "--format", "json", "a.toml", "b.toml"]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
}
