//! Tests that the exit code is the command's answer, whichever process reads the results and
//! messages, and even if no process reads them.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::pipe;
use std::process::{Command, Stdio};

/// A command line of `msrgate`, and the exit code that it must have.
struct Row {
    arguments: &'static [&'static str],
    /// The exit code; `None` if it depends on the host.
    code: Option<i32>,
}

const fn row(arguments: &'static [&'static str], code: i32) -> Row {
    let code = Some(code);
    Row { arguments, code }
}

const GOOD: &str = "tests/policies/good.toml";
const ORG: &str = "tests/policies/org.toml";
const BAD: &str = "tests/policies/bad.toml";
const CPUS: &str = "tests/policies/cpus.toml";
const UNTIDY: &str = "tests/policies/untidy.toml";
const TRACE: &str = "tests/traces/events.jsonl";
const DMESG: &str = "tests/imports/dmesg.txt";

/// Command lines for all commands of `msrgate` and each of their possible answers, as text and as JSON.
const ROWS: &[Row] = &[
    row(&["test", GOOD, "--backend", "model"], 0),
    row(&["test", GOOD, "--backend", "model", "--format", "json"], 0),
    row(&["check", GOOD], 0),
    row(&["check", ORG, "--within", GOOD], 1),
    row(&["check", ORG, "--within", GOOD, "--format", "json"], 1),
    row(&["check", BAD], 1),
    row(&["check", BAD, "--format", "json"], 1),
    row(&["check", "/nonexistent", "--format", "json"], 2),
    row(&["explain", GOOD, "0x0..=0xff"], 0),
    row(&["explain", GOOD, "0x0..=0xff", "--format", "json"], 0),
    row(&["explain", CPUS, "MSR_PPERF"], 0),
    row(&["diff", GOOD, GOOD], 0),
    row(&["diff", GOOD, ORG], 1),
    row(&["diff", GOOD, ORG, "--fail-on", "looser"], 1),
    row(&["diff", GOOD, ORG, "--format", "json"], 1),
    row(&["exec", GOOD, "--", "/nonexistent"], 127),
    row(&["exec", BAD, "--", "true"], 125),
    row(&["exec"], 125),
    row(&["learn"], 125),
    // The policy is there already.
    row(&["learn", "-o", GOOD, "--", "true"], 125),
    row(&["compile", ORG], 0),
    row(&["compile", ORG, "--format", "abi", "--filter-only"], 0),
    row(&["compile", ORG, "--format", "json", "--filter-only"], 0),
    row(&["compile", ORG, "--format", "c", "--filter-only"], 0),
    row(&["compile", CPUS, "--format", "json"], 2),
    row(&["replay", GOOD, TRACE], 1),
    row(&["replay", GOOD, TRACE, "--format", "json"], 1),
    row(&["replay", "allow-all", TRACE], 0),
    row(&["replay", GOOD, "/dev/null"], 2),
    // An entry refuses the write, so it is decided.
    row(&["review", GOOD, TRACE], 0),
    row(&["review", GOOD, TRACE, "--format", "json"], 0),
    row(&["review", "allow-all", TRACE], 0),
    row(&["review", GOOD, "/nonexistent"], 2),
    row(&["learn", "--from", TRACE, "-o", GOOD], 2),
    row(&["import", DMESG], 0),
    row(&["import", "/dev/null", "--from", "kernel-log"], 1),
    row(&["fmt", UNTIDY], 0),
    row(&["fmt", UNTIDY, "--check"], 1),
    row(&["fmt", UNTIDY, "--check", "--format", "json"], 1),
    row(&["msr", "IA32_EFER"], 0),
    row(&["msr", "IA32_EFER", "--format", "json"], 0),
    row(&["msr", "nothing-is-called-this"], 1),
    Row {
        arguments: &["doctor"],
        code: None,
    },
    Row {
        arguments: &["doctor", "--format", "json"],
        code: None,
    },
    row(&["policies"], 0),
    row(&["policies", "--format", "json"], 0),
    row(&["policies", "linux-boot"], 0),
    row(&["help"], 0),
    row(&["help", "check"], 0),
    row(&["help", "schema"], 0),
    row(&["help", "nothing-is-called-this"], 2),
    row(&["--help"], 0),
    row(&["check", "--help"], 0),
    row(&["--version"], 0),
    row(&["frobnicate"], 2),
    row(&[], 2),
];

fn msrgate(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_msrgate"));
    command.args(arguments).stdin(Stdio::null());
    command
}

/// Returns a shell command that first runs `script` and then `msrgate` with these arguments.
fn after(script: &str, arguments: &[&str]) -> Command {
    let mut shell = Command::new("sh");
    let script = format!("{script} \"$0\" \"$@\"");
    shell.args(["-c", &script, env!("CARGO_BIN_EXE_msrgate")]);
    shell.args(arguments).stdin(Stdio::null());
    shell
}

/// Returns the exit code of a command whose output goes to `out` and `err`. The code after a panic is 101.
fn code(mut command: Command, out: impl Into<Stdio>, err: impl Into<Stdio>) -> i32 {
    let status = command.stdout(out).stderr(err).status();
    let status = status.expect("the command runs");
    status.code().expect("it exits by itself")
}

/// Returns a file to which every write fails, as on a full disk.
fn full() -> Stdio {
    let full = File::options().write(true).open("/dev/full");
    full.expect("/dev/full").into()
}

/// Returns the write end of a pipe that has no reader.
fn broken() -> Stdio {
    let (reader, writer) = pipe().expect("a pipe");
    drop(reader);
    writer.into()
}

/// Each command that the help lists has a row in [`ROWS`].
#[test]
fn every_command_that_help_lists_is_tested_for_its_exit_codes() {
    let help = msrgate(&["--help"]).output().expect("it runs").stdout;
    let help = String::from_utf8(help).expect("text");
    let commands = help.split_once("Commands:\n").expect("a list").1;
    let commands = commands.lines().take_while(|line| !line.is_empty());
    // The description of a command may continue on the next line, with a larger indent.
    let names = commands.filter_map(|line| line.strip_prefix("  "));
    let names = names.filter(|line| !line.starts_with(' '));
    let names: BTreeSet<_> = names
        .map(|line| line.split(' ').next().unwrap_or_default())
        .collect();
    let rows = ROWS.iter().filter_map(|row| row.arguments.first().copied());
    let rows: BTreeSet<_> = rows
        .filter(|first| *first != "frobnicate" && !first.starts_with('-'))
        .collect();
    assert_eq!(names, rows);
}

#[test]
fn exit_code_is_answer_if_results_have_no_reader_and_at_least_2_if_writing_fails() {
    for row in ROWS {
        let (arguments, command) = (row.arguments, || msrgate(row.arguments));
        let output = command().output().expect("the command runs");
        let answer = output.status.code().expect("it exits by itself");
        assert_eq!(row.code.unwrap_or(answer), answer, "{arguments:?}");
        assert_eq!(
            code(command(), broken(), Stdio::null()),
            answer,
            "{arguments:?}"
        );
        // If the command has results, they are lost, so the exit code is at least 2.
        let wanted = if output.stdout.is_empty() {
            answer
        } else {
            answer.max(2)
        };
        assert_eq!(
            code(command(), full(), Stdio::null()),
            wanted,
            "{arguments:?}"
        );
        assert_eq!(code(command(), full(), full()), wanted, "{arguments:?}");
        let closed = after("exec >&-;", arguments);
        assert_eq!(
            code(closed, Stdio::null(), Stdio::null()),
            wanted,
            "{arguments:?}"
        );
        let for_reading = File::open("/dev/null").expect("/dev/null");
        assert_eq!(
            code(command(), for_reading, Stdio::null()),
            wanted,
            "{arguments:?}"
        );
    }
}

#[test]
fn exit_code_is_the_same_if_standard_error_cannot_be_written() {
    for row in ROWS {
        let (arguments, command) = (row.arguments, || msrgate(row.arguments));
        let answer = code(command(), Stdio::null(), Stdio::null());
        assert_eq!(
            code(command(), Stdio::null(), full()),
            answer,
            "{arguments:?}"
        );
        assert_eq!(
            code(command(), Stdio::null(), broken()),
            answer,
            "{arguments:?}"
        );
        assert_eq!(code(command(), broken(), broken()), answer, "{arguments:?}");
        let closed = after("exec 2>&-;", arguments);
        assert_eq!(
            code(closed, Stdio::null(), Stdio::null()),
            answer,
            "{arguments:?}"
        );
        let closed = after("exec <&- 2>&-;", arguments);
        assert_eq!(
            code(closed, Stdio::null(), Stdio::null()),
            answer,
            "{arguments:?}"
        );
    }
}

/// If standard input is closed, a command that reads it exits with 2 and says why.
#[test]
fn command_that_reads_closed_standard_input_exits_2() {
    for arguments in [
        &["replay", GOOD, "-"][..],
        &["replay", "-", TRACE],
        &["check", "-"],
        &["compile", "-"],
        &["fmt", "-"],
        &["import", "-", "--from", "kernel-log"],
    ] {
        let mut command = after("exec <&-;", arguments);
        let output = command.output().expect("the command runs");
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        let talk = String::from_utf8(output.stderr).expect("text");
        assert_eq!(
            talk,
            "error: standard input: msrgate was started without standard input: bad file descriptor\n",
            "{arguments:?}"
        );
    }
}

#[test]
fn error_of_writing_results_to_standard_output_is_reported_on_standard_error() {
    for arguments in [&["compile", ORG][..], &["policies"], &["--help"]] {
        let mut command = msrgate(arguments);
        let output = command.stdout(full()).output().expect("the command runs");
        let talk = String::from_utf8(output.stderr).expect("text");
        assert_eq!(
            talk,
            "error: cannot write the results: no space left on device\n"
        );
        let mut command = after("exec >&-;", arguments);
        let output = command.output().expect("the command runs");
        let talk = String::from_utf8(output.stderr).expect("text");
        assert_eq!(
            talk,
            "error: cannot write the results: bad file descriptor\n"
        );
    }
}

/// If the reader closes the pipe while the command still writes, the exit code is the answer. The output is
/// larger than a pipe.
#[test]
fn exit_code_is_the_answer_if_reader_closes_pipe_before_all_is_written() {
    let folder = tempfile::tempdir().expect("a folder");
    let [old, new] = [0, 1].map(|first| {
        let path = folder.path().join(format!("{first}.toml"));
        let entries = (0..4000).map(|n| format!("{:#x} = \"rw\"\n", 0x10000 + 2 * n + first));
        let entries: String = entries.collect();
        let text = format!("policy = 1\ndefault = \"deny\"\n[msrs]\n{entries}");
        fs::write(&path, text).expect("written");
        path.to_str().expect("text").to_owned()
    });
    for format in ["text", "json"] {
        let arguments = [
            "diff",
            &old,
            &new,
            "--fail-on",
            "looser",
            "--format",
            format,
        ];
        let script = "{ exec 3>&1; { \"$0\" \"$@\"; echo $? >&3; } | head -n 1 >&2; };:";
        let output = after(script, &arguments).output().expect("it runs");
        assert_eq!(String::from_utf8_lossy(&output.stdout), "1\n");
    }
}

/// If the disk is full, a command that writes a file fails. The old file stays, and no part of the new one
/// remains.
#[test]
fn command_that_fails_to_write_output_file_keeps_old_file() {
    let folder = tempfile::tempdir().expect("a folder");
    let full_disk = "ulimit -f 0; exec";
    let file = folder.path().join("file");
    let path = file.to_str().expect("text");
    let untidy = fs::read_to_string(UNTIDY).expect("a policy");
    let commands = [
        &["compile", ORG, "-o", path][..],
        &["compile", ORG, "--format", "c", "--filter-only", "-o", path],
        &["fmt", "--write", path],
    ];
    for arguments in commands {
        fs::write(&file, &untidy).expect("written");
        let command = after(full_disk, arguments);
        assert_eq!(
            code(command, Stdio::null(), Stdio::null()),
            2,
            "{arguments:?}"
        );
        assert_eq!(fs::read_to_string(&file).expect("the old one"), untidy);
        let left = fs::read_dir(folder.path()).expect("a folder").count();
        assert_eq!(left, 1, "{arguments:?}");
    }
    let command = msrgate(&["compile", ORG, "-o", "/dev/full"]);
    assert_eq!(code(command, Stdio::null(), Stdio::null()), 2);
    let command = after(full_disk, &["policies", "linux-boot"]);
    let out = File::create(&file).expect("a file");
    assert_eq!(code(command, out, Stdio::null()), 2);
}
