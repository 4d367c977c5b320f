//! Tests of truncated input files: every command exits with 2, the code of an input error.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

fn msrgate(folder: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_msrgate"));
    command
        .args(arguments)
        .args(["--color", "never"])
        .current_dir(folder);
    command.output().expect("msrgate starts")
}

fn talk(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

const ORG: &str =
    "policy = 1\ndefault = \"allow\"\n[msrs]\n0x277 = \"none\"\nIA32_EFER = \"none\"\n";
const LOOSE: &str = "policy = 1\ndefault = \"allow\"\n[msrs]\n0x277 = \"none\"\n";

/// A truncated filter is an input error. Without its last ranges, a filter that allows by default would be
/// looser, and a policy would seem to be within it.
#[test]
fn command_exits_2_for_truncated_file_of_compiled_filter() {
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    fs::write(folder.join("org.toml"), ORG).expect("a file");
    fs::write(folder.join("loose.toml"), LOOSE).expect("a file");
    let within = ["check", "loose.toml", "--host", "none", "--within", "cut"];
    let diff = ["diff", "cut", "loose.toml", "--fail-on", "looser"];
    let import = ["import", "cut"];
    for format in ["json", "c", "rust", "abi", "program"] {
        let compiled = ["compile", "org.toml", "--format", format, "-o", "whole"];
        assert!(msrgate(folder, &compiled).status.success(), "{format}");
        let whole = fs::read(folder.join("whole")).expect("the filter");
        fs::write(folder.join("cut"), &whole).expect("a file");
        for (command, code) in [(&within[..], 1), (&diff, 1), (&import, 0)] {
            let output = msrgate(folder, command);
            assert_eq!(output.status.code(), Some(code), "{format} {output:?}");
        }
        let lines = whole.split_inclusive(|&byte| byte == b'\n');
        let ends = lines.scan(0, |end, line| {
            *end += line.len();
            Some(*end)
        });
        let inside = [20, whole.len() / 2, whole.trim_ascii_end().len() - 1];
        for length in ends.filter(|&end| end < whole.len()).chain(inside) {
            fs::write(folder.join("cut"), &whole[..length]).expect("a file");
            for command in [&within[..], &diff, &import] {
                let output = msrgate(folder, command);
                assert_eq!(
                    output.status.code(),
                    Some(2),
                    "{format} {length} {output:?}"
                );
                assert_eq!(output.stdout, b"", "{format} {length}");
            }
        }
    }
}

/// If the last line has no line feed and may be a part of a longer line, `import` leaves the line out and
/// exits with 2. For example, `0xffffffff0` may be the beginning of the mask `0xffffffff00000000`.
#[test]
fn import_exits_2_if_last_line_of_file_may_be_cut_off() {
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    for (text, code, says) in [
        (
            "0x10 0x0 # TSC\n0xc0000081 0xffffffff0",
            2,
            Some(
                "not imported: list:2: this last line was not read: it does not end with a line feed",
            ),
        ),
        (
            "# Write Mask\n0xc0000081 0xffffffff0",
            2,
            Some(
                "not imported: list:2: this last line was not read: it does not end with a line feed",
            ),
        ),
        ("0x10 0x0 # TSC\n0xc0000081 0xffffffff0\n", 0, None),
        ("0x10 0x0 # \"TSC\"", 0, None),
        (
            "kvm [1]: ignored wrmsr: 0x10 data 0x0\nkvm [1]: ignored wrmsr: 0xc001",
            2,
            Some("not imported: list:2: "),
        ),
        (
            "MSR_ADDR,VALUE\n0x10,0x5\n0x17",
            2,
            Some("not imported: list:3: "),
        ),
        (
            "kvm [1]: ignored rdmsr: 0x10\nkvm_msr_ignored_check: 120 callbacks suppressed\n",
            2,
            Some("note: list:2: the log says that 120 messages are missing"),
        ),
    ] {
        fs::write(folder.join("list"), text).expect("a file");
        let output = msrgate(folder, &["import", "list"]);
        assert_eq!(output.status.code(), Some(code), "{text}: {output:?}");
        let talk = talk(&output);
        assert!(says.is_none_or(|says| talk.contains(says)), "{talk}");
        let policy = String::from_utf8(output.stdout).expect("text");
        let is_cut = policy.contains("# A part of the file may be missing")
            || policy.contains("# The log says that it lacks messages");
        assert_eq!(is_cut, code == 2 && !policy.is_empty(), "{policy}");
        let names_cut = policy.contains("0xc001 ") || policy.contains("STAR");
        assert!(!(is_cut && names_cut), "{policy}");
    }
}

/// A filter with bytes after its last bitmap is an input error. Otherwise a file of zeros, which a crash may
/// leave, would be a filter that allows everything.
#[test]
fn command_exits_2_for_filter_file_with_bytes_after_last_bitmap() {
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    fs::write(folder.join("org.toml"), ORG).expect("a file");
    fs::write(folder.join("all.toml"), "policy = 1\ndefault = \"allow\"\n").expect("a file");
    let compile = |policy: &str, to: &str| {
        let arguments = ["compile", policy, "--format", "abi", "-o", to];
        assert!(msrgate(folder, &arguments).status.success());
        fs::read(folder.join(to)).expect("the filter")
    };
    let (whole, all) = (
        compile("org.toml", "org.abi"),
        compile("all.toml", "all.abi"),
    );
    let zeroed = [&vec![0; all.len()][..], &whole[all.len()..]].concat();
    for text in [
        vec![0; whole.len()],
        zeroed,
        [&all[..], &whole].concat(),
        [&whole[..], b"junk"].concat(),
    ] {
        fs::write(folder.join("cut"), &text).expect("a file");
        for command in [
            &["check", "all.toml", "--host", "none", "--within", "cut"][..],
            &["diff", "cut", "all.toml", "--fail-on", "any"],
            &["import", "cut"],
        ] {
            let output = msrgate(folder, command);
            assert_eq!(output.status.code(), Some(2), "{output:?}");
        }
    }
    // For a policy that allows everything, `compile` writes 392 zeros, which is a correct filter.
    assert_eq!(all, vec![0; 392]);
    let diff = ["diff", "all.abi", "all.toml", "--fail-on", "any"];
    assert!(msrgate(folder, &diff).status.success());
}

/// `import` of a text with zeros in it exits with 2: a part of the file was lost.
#[test]
fn import_exits_2_for_log_or_list_that_contains_zero_bytes() {
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    let log = b"[1.0] kvm [1]: ignored rdmsr: 0x1c9 data 0x0\n\0\0\0\n";
    fs::write(folder.join("log"), log).expect("a file");
    fs::write(folder.join("list"), b"0x10 0x0 # TSC\n\0\0\n").expect("a file");
    for (file, from) in [("log", "kernel-log"), ("list", "msr-safe")] {
        let output = msrgate(folder, &["import", file, "--from", from]);
        assert_eq!(output.status.code(), Some(2), "{output:?}");
        assert!(
            talk(&output).contains("a part of the file was lost"),
            "{output:?}"
        );
    }
}
