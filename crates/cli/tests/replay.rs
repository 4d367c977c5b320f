//! Tests of `replay` with traces and policies from standard input, with incomplete traces, and with a
//! Ctrl-C.

use std::fs;
use std::io::Write as _;
use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::Duration;

const REFUSED: &[u8] = b"a-1 [0] 1.2: kvm_msr: msr_write 10 = 0x8\n";
const ALLOWED: &[u8] = b"a-1 [0] 1.3: kvm_msr: msr_read c0000080 = 0x8\n";

fn replay(policy: &str, trace: &str) -> Child {
    replay_as("text", policy, trace)
}

fn replay_as(format: &str, policy: &str, trace: &str) -> Child {
    Command::new(env!("CARGO_BIN_EXE_msrgate"))
        .args(["replay", policy, trace, "--color", "never"])
        .args(["--format", format])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("msrgate starts")
}

/// Writes `input` to the standard input of a running `msrgate`, and waits for its end. Returns the exit
/// code, the text of standard output, and the text of standard error.
fn said(mut run: Child, input: &[u8]) -> (Option<i32>, String, String) {
    let mut stdin = run.stdin.take().expect("a pipe");
    stdin.write_all(input).expect("it reads");
    drop(stdin);
    ended(run)
}

fn ended(run: Child) -> (Option<i32>, String, String) {
    let Output {
        status,
        stdout,
        stderr,
    } = run.wait_with_output().expect("it ends");
    let text = |bytes| String::from_utf8(bytes).expect("text");
    (status.code(), text(stdout), text(stderr))
}

#[test]
fn replay_reads_trace_from_standard_input() {
    let (code, out, err) = said(replay("tests/policies/good.toml", "-"), ALLOWED);
    assert_eq!((code, err.as_str()), (Some(0), ""), "{out}");
    let first = out.lines().next();
    assert_eq!(
        first,
        Some("standard input under tests/policies/good.toml: of 1 access, none would be refused")
    );

    let (code, out, _) = said(replay("tests/policies/good.toml", "-"), REFUSED);
    assert_eq!(code, Some(1), "{out}");
}

#[test]
fn replay_reads_policy_from_standard_input() {
    let policy = b"policy = 1\ndefault = 'allow'\n";
    let (code, out, _) = said(replay("-", "tests/traces/perf.txt"), policy);
    assert_eq!(code, Some(0), "{out}");
}

/// `replay` of a trace without accesses exits with 2: the empty output of a failed tracer, as in `false |
/// msrgate replay POLICY -`, proves nothing about the policy.
#[test]
fn replay_of_trace_without_accesses_exits_2() {
    let entry = b"a-1 [0] 1.2: kvm_entry: vcpu 0\nCPU:0 [LOST 3 EVENTS]\n";
    for trace in [&b""[..], b"# tracer: nop\n", entry] {
        let (code, out, err) = said(replay("tests/policies/good.toml", "-"), trace);
        assert_eq!((code, out.as_str()), (Some(2), ""), "{err}");
        assert!(
            err.starts_with("error: standard input: the trace has no MSR access"),
            "{err}"
        );
        assert_eq!(err.contains("3 events are missing"), trace == entry);

        let (code, out, _) = said(replay_as("json", "tests/policies/good.toml", "-"), trace);
        assert_eq!(code, Some(2), "{out}");
        let report: serde_json::Value = serde_json::from_str(&out).expect("JSON");
        assert_eq!(report["ok"], false);
        assert_eq!(report["error"]["kind"], "input");
    }
    let (code, out, _) = ended(replay("tests/policies/good.toml", "/dev/null"));
    assert_eq!((code, out.as_str()), (Some(2), ""));
}

/// If events are missing in a trace, the answer is never yes (exit code 0), because a missing
/// access may be one that the policy denies. One denied access in the trace is enough for the
/// answer no (exit code 1).
#[test]
fn replay_of_trace_with_missing_events_never_exits_0() {
    let unreadable = b"a-1 [0] 1.4: kvm_msr: msr_wr\n";
    let lost = b"CPU:1 [LOST 500 EVENTS]\n";
    let overwritten = b"# entries-in-buffer/entries-written: 45/160   #P:2\n";
    let nothing = b"# tracer: nop\n";
    let deflected = b"q-1 [000] 1.0: kvm_userspace_exit: reason KVM_EXIT_X86_RDMSR (29)\n";
    let handled = b"q-1 [000] 1.0: kvm_userspace_exit: reason KVM_EXIT_IO (2)\n";
    for (more, code_of_allowed) in [
        (&nothing[..], 0),
        (unreadable, 2),
        (lost, 2),
        (overwritten, 2),
        (deflected, 2),
        (handled, 0),
    ] {
        for (access, wanted) in [(ALLOWED, code_of_allowed), (REFUSED, 1)] {
            let trace = [more, access].concat();
            let (code, out, _) = said(replay("tests/policies/good.toml", "-"), &trace);
            assert_eq!(code, Some(wanted), "{out}");
            let is_part = out.contains("but a part of the trace is missing");
            assert_eq!(is_part, wanted == 2, "{out}");
            let run = replay_as("json", "tests/policies/good.toml", "-");
            let (code, out, _) = said(run, &trace);
            assert_eq!(code, Some(wanted), "{out}");
            let report: serde_json::Value = serde_json::from_str(&out).expect("JSON");
            assert_eq!(report["ok"], wanted == 0);
        }
    }
}

/// After one Ctrl-C `replay` stops reading the trace, and reports on the accesses that it has read.
#[test]
fn replay_prints_report_about_accesses_read_before_ctrl_c() {
    let (code, out, err) = interrupted(replay("tests/policies/good.toml", "-"), REFUSED);
    assert_eq!(err, "stopped by Ctrl-C after line 2 of standard input\n");
    assert_eq!(code, Some(1), "{out}");
    assert!(out.contains("of 2 accesses, 1 would be refused"), "{out}");
}

/// If a Ctrl-C ends the reading before a denied access was found, the answer is not yes (exit code 0),
/// because the unread lines may have a denied access.
#[test]
fn replay_stopped_by_ctrl_c_before_any_denied_access_never_exits_0() {
    let policy = "tests/policies/good.toml";
    let (code, out, _) = interrupted(replay(policy, "-"), ALLOWED);
    assert_eq!(code, Some(2), "{out}");
    assert!(
        out.contains("of 2 accesses, none would be refused, but a part of the trace is missing"),
        "{out}"
    );
    let (code, out, _) = interrupted(replay_as("json", policy, "-"), ALLOWED);
    assert_eq!(code, Some(2), "{out}");
    let report: serde_json::Value = serde_json::from_str(&out).expect("JSON");
    assert_eq!(report["ok"], false);
}

/// If a Ctrl-C ended the reading, the JSON report has the number of the last line that was read. Without a
/// Ctrl-C the number is null.
#[test]
fn replay_json_after_ctrl_c_has_number_of_last_line_read() {
    let stopped = |out: &str| {
        let report: serde_json::Value = serde_json::from_str(out).expect("JSON");
        report["stopped_after_line"].clone()
    };
    let run = || replay_as("json", "tests/policies/good.toml", "-");
    let (_, out, _) = interrupted(run(), REFUSED);
    assert_eq!(stopped(&out), 2);
    let (_, out, _) = said(run(), ALLOWED);
    assert_eq!(stopped(&out), serde_json::Value::Null);
}

/// Writes the line `first` to a running `msrgate`, sends it a Ctrl-C, and then writes a line with an allowed
/// access. Returns the exit code, the text of standard output, and the text of standard error.
fn interrupted(mut run: Child, first: &[u8]) -> (Option<i32>, String, String) {
    let mut stdin = run.stdin.take().expect("a pipe");
    stdin.write_all(first).expect("it reads");
    assert!(reads(&mut run), "it never waits for its input");
    let kill = Command::new("sh")
        .args(["-c", &format!("kill -INT {}", run.id())])
        .status();
    assert!(kill.expect("a shell").success());
    // After the Ctrl-C another line comes, and the pipe stays open. The run must end all the same.
    stdin.write_all(ALLOWED).expect("it still reads");
    ended(run)
}

/// If a Ctrl-C also ends the tracer while `replay` waits for the next line, the trace counts as incomplete:
/// the end of the pipe is not the end of the trace.
#[test]
fn replay_exits_2_if_ctrl_c_also_ends_tracer_while_replay_waits_for_line() {
    let mut run = replay_as("json", "tests/policies/good.toml", "-");
    let mut stdin = run.stdin.take().expect("a pipe");
    stdin.write_all(ALLOWED).expect("it reads");
    assert!(reads(&mut run), "it never waits for its input");
    let kill = Command::new("sh")
        .args(["-c", &format!("kill -INT {}", run.id())])
        .status();
    assert!(kill.expect("a shell").success());
    drop(stdin);
    let (code, out, err) = ended(run);
    assert_eq!(code, Some(2), "{out}{err}");
    let report: serde_json::Value = serde_json::from_str(&out).expect("JSON");
    assert_eq!(
        (&report["ok"], &report["stopped_after_line"]),
        (&false.into(), &1.into())
    );
}

/// Waits until the run of the command has a handler for SIGINT and sleeps, which means that it waits for its
/// input. Returns false if the command does not wait for its input within about 20 seconds.
fn reads(run: &mut Child) -> bool {
    const SIGINT: u64 = 1 << 1;
    for _ in 0..10_000 {
        assert_eq!(run.try_wait().expect("a child"), None, "it ended early");
        let status = fs::read_to_string(format!("/proc/{}/status", run.id())).expect("Linux");
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            line.unwrap_or_default().trim().to_owned()
        };
        let caught = u64::from_str_radix(&field("SigCgt:"), 16).unwrap_or_default();
        if caught & SIGINT != 0 && field("State:").starts_with('S') {
            return true;
        }
        thread::sleep(Duration::from_millis(2));
    }
    false
}

const BY_VALUE: &str = "policy = 1
default = 'deny'
[msrs]
0x8b = { read = { register = { reset = '0', mask = '0xff', outside = 'deny' } }, \
         write = { register = { reset = '0', mask = '0xff', outside = 'deny' } } }
IA32_LSTAR = { read = 'allow', write = { mask = '0xff', outside = 'deny' } }
IA32_STAR = { read = 'allow', write = 'pin' }
";

/// If an action denies writes by their value, the exit code is 0 only if the trace proves that no write in
/// it is denied.
#[test]
fn replay_exits_0_only_if_trace_proves_that_no_write_is_denied_by_its_value() {
    let folder = tempfile::tempdir().expect("a folder");
    let policy = folder.path().join("by-value.toml");
    fs::write(&policy, BY_VALUE).expect("written");
    let policy = policy.to_str().expect("text");
    let cases = [
        ("write 8b = 0xff00", 1, "of 1 access, 1 would be refused"),
        ("write 8b = 0xff", 0, "of 1 access, none would be refused"),
        (
            "write c0000082 = 0xff00",
            2,
            "of 1 access, 1 may be refused",
        ),
        (
            "read c0000082 = 0xff00\nq-1 [0] 1.0: kvm_msr: msr_write c0000082 = 0xff01",
            2,
            "of 2 accesses, 1 may be refused",
        ),
        (
            "write c0000081 = 0x1",
            0,
            "of 1 access, none would be refused",
        ),
        (
            "write c0000081 = 0x1\nq-1 [0] 1.0: kvm_msr: msr_write c0000081 = 0x2",
            2,
            "of 2 accesses, 2 may be refused",
        ),
    ];
    for (access, wanted, says) in cases {
        let trace = format!("q-1 [000] d..1. 1.0: kvm_msr: msr_{access}\n");
        let (code, out, err) = said(replay(policy, "-"), trace.as_bytes());
        assert_eq!((code, err.as_str()), (Some(wanted), ""), "{trace}{out}");
        assert!(out.contains(says), "{trace}{out}");

        let (code, out, _) = said(replay_as("json", policy, "-"), trace.as_bytes());
        assert_eq!(code, Some(wanted), "{trace}{out}");
        let report: serde_json::Value = serde_json::from_str(&out).expect("JSON");
        assert_eq!(report["ok"], wanted == 0, "{trace}{out}");
    }
}

/// If the last line of a trace has no line feed, the trace is incomplete, because the last number may have
/// had more digits.
#[test]
fn replay_exits_2_if_last_line_of_trace_has_no_line_feed() {
    let cut = &ALLOWED[..ALLOWED.len() - 1];
    let trace = [ALLOWED, cut].concat();
    let (code, out, _) = said(replay("tests/policies/good.toml", "-"), &trace);
    assert_eq!(code, Some(2), "{out}");
    assert!(
        out.contains("the trace is cut off: its last line has no line feed"),
        "{out}"
    );
}

/// Runs `replay` of a shipped policy with these arguments. Returns the exit code and the JSON.
fn report(args: &[&str], trace: &[u8]) -> (Option<i32>, serde_json::Value) {
    let run = Command::new(env!("CARGO_BIN_EXE_msrgate"))
        .args(["replay", "linux-guest", "-", "--format", "json"])
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("msrgate starts");
    let (code, out, _) = said(run, trace);
    (code, serde_json::from_str(&out).expect("JSON"))
}

#[test]
fn replay_reads_kvm_msr_events_in_annotated_lines_and_function_graph_traces() {
    for trace in [
        &include_bytes!("traces/replay-kvm_msr-line-not-read.txt")[..],
        include_bytes!("traces/replay-function-graph.txt"),
    ] {
        let (code, report) = report(&[], trace);
        assert_eq!((code, &report["ok"]), (Some(1), &false.into()), "{report}");
        assert_eq!(report["rows"][0]["index"], "0x611", "{report}");
        assert_eq!(report["rows"][0]["verdict"], "deny", "{report}");
        assert_eq!(report["unreadable"]["count"], 0, "{report}");
    }
}

/// If a line of the event `kvm_msr` cannot be parsed, the answer is never yes (exit code 0), because the
/// line may show an access that the policy denies.
#[test]
fn replay_of_trace_with_unreadable_kvm_msr_event_never_exits_0() {
    let trace = b"CPU 0/KVM-1 [007] 380.1: kvm_msr: msr_read 611 = ?\n\
        CPU 0/KVM-1 [007] 380.2: kvm_msr: msr_write 6e0 = 0x40005\n";
    let (code, report) = report(&[], trace);
    assert_eq!((code, &report["ok"]), (Some(2), &false.into()), "{report}");
}

#[test]
fn replay_with_task_option_counts_only_accesses_of_that_task() {
    let trace = b"CPU 0/KVM-11 [007] 380.1: kvm_msr: msr_read 611 = 0x0\n\
        CPU 0/KVM-12 [007] 380.2: kvm_msr: msr_write 6e0 = 0x40005\n";
    let (code, all) = report(&[], trace);
    assert_eq!((code, &all["accesses"]), (Some(1), &2.into()), "{all}");
    let vms = serde_json::json!(["CPU 0/KVM-11", "CPU 0/KVM-12"]);
    assert_eq!(all["several_vms"], vms);
    let (_, text, _) = said(replay("linux-guest", "-"), trace);
    assert!(text.contains("the trace is of 2 VMs"), "{text}");

    for wanted in ["12", "CPU 0/KVM-12"] {
        let (code, one) = report(&["--task", wanted], trace);
        assert_eq!((code, &one["accesses"]), (Some(0), &1.into()), "{one}");
        assert_eq!(one["skipped"], 1, "{one}");
    }
    let (code, both) = report(&["--task", "11", "--task", "12"], trace);
    assert_eq!((code, &both["accesses"]), (Some(1), &2.into()), "{both}");

    let (code, none) = report(&["--task", "13"], trace);
    assert_eq!(code, Some(2));
    let why = none["error"]["message"].to_string();
    assert!(why.contains("CPU 0/KVM-11, CPU 0/KVM-12"), "{none}");

    let nameless = [&trace[..], b"kvm_msr: msr_write 6e0 = 0x1\n"].concat();
    let (code, part) = report(&["--task", "12"], &nameless);
    assert_eq!(
        (code, &part["without_task"]),
        (Some(2), &1.into()),
        "{part}"
    );
}
