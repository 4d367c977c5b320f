//! Tests of the JSON form of answers and errors, over all commands that have one.

use std::collections::BTreeSet;
use std::process::{Command, Output, Stdio};

use serde_json::Value;

const GOOD: &str = "tests/policies/good.toml";
const BAD: &str = "tests/policies/bad.toml";
const TRACE: &str = "tests/traces/events.jsonl";
const ABSENT: &str = "/nonexistent";

/// A command with JSON: arguments for an answer, and arguments for errors, each with the kind of the error.
struct Row {
    command: &'static str,
    answers: &'static [&'static [&'static str]],
    errors: &'static [(&'static [&'static str], &'static str)],
}

const MODEL: [&str; 2] = ["--backend", "model"];

const ROWS: &[Row] = &[
    Row {
        command: "test",
        answers: &[&[GOOD, MODEL[0], MODEL[1]]],
        errors: &[
            (&[BAD, MODEL[0], MODEL[1]], "mistakes"),
            (&[ABSENT], "input"),
            (&[GOOD, "--msr", "IA32_EFFER"], "usage"),
            (&[GOOD, "--msr", "0x0..=0xffffffff"], "usage"),
        ],
    },
    Row {
        command: "check",
        answers: &[&[GOOD], &["sandbox"], &[GOOD, "--within", "allow-all"]],
        errors: &[
            (&[BAD], "mistakes"),
            (&[ABSENT], "input"),
            (&["tests/policies/wide.toml"], "refused"),
            (&[GOOD, "--within", BAD], "mistakes"),
            (&[GOOD, "--cpu", "nonsense"], "usage"),
        ],
    },
    Row {
        command: "explain",
        answers: &[&[GOOD, "0x10"], &["quiet-unknown", "0xdead"]],
        errors: &[
            (&[BAD, "0x10"], "mistakes"),
            (&[ABSENT, "0x10"], "input"),
            (&[GOOD, "IA32_EFFER"], "usage"),
            (&[GOOD, "0x0..=0xffffffff"], "usage"),
            (&[GOOD, "0x10", "--cpu", "nonsense"], "usage"),
        ],
    },
    Row {
        command: "diff",
        answers: &[&[GOOD, GOOD], &[GOOD, "sandbox"]],
        errors: &[
            (&[GOOD, BAD], "mistakes"),
            (&[GOOD, ABSENT], "input"),
            (&["-", "-"], "usage"),
        ],
    },
    Row {
        command: "replay",
        answers: &[&[GOOD, TRACE]],
        errors: &[
            (&[BAD, TRACE], "mistakes"),
            (&[GOOD, ABSENT], "input"),
            (&["-", "-"], "usage"),
        ],
    },
    Row {
        command: "review",
        answers: &[&[GOOD, TRACE]],
        errors: &[
            (&[BAD, TRACE], "mistakes"),
            (&[GOOD, ABSENT], "input"),
            (&[GOOD, TRACE, "--accept", "IA32_EFFER"], "usage"),
        ],
    },
    Row {
        command: "fmt",
        answers: &[&[GOOD], &[BAD, "--check"], &[ABSENT, "--check"]],
        errors: &[(&[GOOD, GOOD], "usage")],
    },
    Row {
        command: "msr",
        answers: &[
            &["IA32_EFER"],
            &["nothing-is-called-this"],
            &["0x277", "--decode", "0x1"],
        ],
        errors: &[(&["IA32_EFER", "--decode", "nonsense"], "usage")],
    },
    Row {
        command: "doctor",
        answers: &[],
        errors: &[],
    },
    Row {
        command: "policies",
        answers: &[&[], &["sandbox"]],
        errors: &[(&["no-such-policy"], "usage")],
    },
];

fn msrgate(command: &str, arguments: &[&str], more: &[&str]) -> Output {
    let mut msrgate = Command::new(env!("CARGO_BIN_EXE_msrgate"));
    msrgate
        .arg(command)
        .args(more)
        .args(arguments)
        .stdin(Stdio::null());
    msrgate.output().expect("msrgate runs")
}

/// Returns the JSON on standard output, which has the version of its format.
fn json(output: &Output, called: &str) -> Value {
    let json: Value = serde_json::from_slice(&output.stdout).expect(called);
    assert_eq!(json["schema"], 1, "{called}: {json}");
    json
}

fn assert_is_error(output: &Output, called: &str, kind: &str) {
    let json = json(output, called);
    assert_eq!(json["ok"], false, "{called}: {json}");
    assert_eq!(json["error"]["kind"], kind, "{called}: {json}");
    let message = json["error"]["message"].as_str().expect("a message");
    assert!(!message.is_empty() && !message.contains('\u{1b}'), "{json}");
    assert!(!output.stderr.is_empty(), "{called}: {output:?}");
    assert!(!output.status.success(), "{called}: {output:?}");
}

/// Each command whose help offers JSON has a row in [`ROWS`], and no other command has one.
#[test]
fn every_command_with_json_has_row_in_table() {
    let help = msrgate("--help", &[], &[]).stdout;
    let help = String::from_utf8(help).expect("text");
    let (_, commands) = help.split_once("Commands:\n").expect("a list");
    let commands = commands.lines().take_while(|line| !line.is_empty());
    let names = commands.filter_map(|line| line.strip_prefix("  ")?.split(' ').next());
    let with_json: BTreeSet<_> = names
        .filter(|name| !name.is_empty())
        .filter(|name| {
            let help = msrgate(name, &["--help"], &[]).stdout;
            String::from_utf8_lossy(&help).contains("JSON, for programs")
        })
        .collect();
    let rows: BTreeSet<_> = ROWS.iter().map(|row| row.command).collect();
    assert_eq!(with_json, rows);
}

#[test]
fn every_json_answer_has_schema() {
    for row in ROWS {
        for arguments in row.answers {
            let called = format!("{} {arguments:?}", row.command);
            json(
                &msrgate(row.command, arguments, &["--format", "json"]),
                &called,
            );
        }
    }
    // This answer, or this error, depends on the host.
    json(&msrgate("doctor", &["--format", "json"], &[]), "doctor");
}

#[test]
fn every_json_error_has_schema_and_kind() {
    for row in ROWS {
        for (arguments, kind) in row.errors {
            let called = format!("{} {arguments:?}", row.command);
            let output = msrgate(row.command, arguments, &["--format", "json"]);
            assert_is_error(&output, &called, kind);
        }
    }
}

/// Arguments that clap refuses are an error in JSON too, wherever and however JSON is asked for.
#[test]
fn wrong_usage_is_json_error_if_json_is_asked_for() {
    for row in ROWS {
        for wrong in [
            &["--no-such-option", "--format", "json"][..],
            &["--format=json", "--no-such-option"],
            &["--color", "sometimes", "--format", "json"],
        ] {
            let called = format!("{} {wrong:?}", row.command);
            let output = msrgate(row.command, wrong, &[]);
            assert_eq!(output.status.code(), Some(2), "{called}");
            assert_is_error(&output, &called, "usage");
        }
    }
    let output = msrgate("frobnicate", &["--format", "json"], &[]);
    assert_is_error(&output, "frobnicate", "usage");
}

/// Without a question for JSON, wrong usage is told on standard error only. `--format` of `compile` is about
/// the file that it writes, and arguments after `--` are the VMM's.
#[test]
fn wrong_usage_prints_no_json_if_none_is_asked_for() {
    for (command, arguments) in [
        ("check", &["--no-such-option"][..]),
        ("compile", &["--no-such-option", "--format", "json"]),
        (
            "exec",
            &[
                "--no-such-option",
                "p.toml",
                "--",
                "vmm",
                "--format",
                "json",
            ],
        ),
        ("frobnicate", &["--", "--format", "json"]),
    ] {
        let output = msrgate(command, arguments, &[]);
        assert!(output.stdout.is_empty(), "{command}: {output:?}");
        assert!(!output.stderr.is_empty(), "{command}: {output:?}");
    }
}

/// The filter that `compile` writes as JSON has the version of its format, too.
#[test]
fn json_of_filter_has_schema() {
    let output = msrgate("compile", &["allow-all", "--format", "json"], &[]);
    json(&output, "compile");
}
