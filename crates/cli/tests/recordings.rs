//! Tests of `learn --from` and `review`, which read recordings and need no KVM.

#![expect(
    clippy::unwrap_used,
    reason = "the functions that several tests share stop where a test would"
)]

use std::fs;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use serde_json::Value;
use tempfile::TempDir;

const POLICY: &str = "# Ours.\npolicy = 1\ndefault = \"deny\"\n\n[msrs]\nIA32_PAT = \"r\" # memory types\n0x606 = { read = \"deny\", write = \"deny\", final = true, why = \"no guest measures its neighbours\" }\n";

const EVENTS: &str = r#"{"schema":1,"time":1.5,"vcpu":0,"msr":"0x277","access":"write","reason":"filter","action":"deny"}
{"schema":1,"time":1.6,"vcpu":0,"msr":"0xc0000080","access":"write","reason":"filter","action":"deny"}
{"schema":1,"time":1.7,"vcpu":0,"msr":"0xc0000080","access":"write","reason":"filter","action":"deny"}
{"schema":1,"time":1.8,"vcpu":0,"msr":"0x606","access":"read","reason":"filter","action":"deny"}
"#;

/// The line with which a run of `exec --events` says that its policy guards one more VM.
const GUARDED: &str = "{\"schema\":1,\"event\":\"vm\",\"guarded\":1}\n";

const TRACE: &str = " CPU-1 [001] 1.2: kvm_msr: msr_read c0000080 = 0xd01\n CPU-1 [001] 1.3: kvm_msr: msr_read 1c9 = 0x0 (#GP)\n";

struct Folder(TempDir);

impl Folder {
    fn new(files: &[(&str, &str)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in files {
            fs::write(folder.path().join(name), text).unwrap();
        }
        Self(folder)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap()
    }

    /// Runs `msrgate` in this folder. Returns the exit code, the text of standard output, and the text of
    /// standard error.
    fn run(&self, arguments: &[&str]) -> (Option<i32>, String, String) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_msrgate"));
        command.args(arguments).current_dir(self.0.path());
        let ran = command.env("NO_COLOR", "1").stdin(Stdio::null()).output();
        let ran = ran.unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        (ran.status.code(), text(ran.stdout), text(ran.stderr))
    }
}

#[test]
fn learn_from_events_and_trace_writes_policy_with_comments_on_what_each_cannot_show() {
    let folder = Folder::new(&[("e.jsonl", EVENTS), ("t.txt", TRACE)]);
    let (code, _, err) = folder.run(&["learn", "--from", "e.jsonl", "t.txt", "-o", "new.toml"]);
    assert_eq!(code, Some(0), "{err}");
    assert!(err.contains("msrgate check new.toml"), "{err}");
    let text = folder.read("new.toml");
    for part in [
        "learnt: first written at e.jsonl:1",
        "# e.jsonl has only refusals.",
        "# t.txt is a trace.",
        "KVM or a filter refused the read",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    assert_eq!(folder.run(&["fmt", "--check", "new.toml"]).0, Some(0));
    assert_eq!(
        folder.run(&["check", "new.toml", "--host", "none"]).0,
        Some(0)
    );
    assert_eq!(folder.run(&["replay", "new.toml", "e.jsonl"]).0, Some(0));
}

#[test]
fn learn_from_recording_with_lost_events_exits_1_and_policy_begins_with_warning() {
    let events = format!("{EVENTS}{{\"schema\":1,\"dropped\":9}}\n");
    let folder = Folder::new(&[("e.jsonl", &events)]);
    let (code, _, err) = folder.run(&["learn", "--from", "e.jsonl", "-o", "new.toml"]);
    assert_eq!(code, Some(1), "{err}");
    let text = folder.read("new.toml");
    assert!(
        text.starts_with("# NOT ALL") && text.contains("9 events are lost"),
        "{text}"
    );
}

#[test]
fn learn_merge_adds_to_policy_and_keeps_entries_of_policy_author() {
    let folder = Folder::new(&[("e.jsonl", EVENTS), ("p.toml", POLICY)]);
    let arguments = [
        "learn", "--from", "e.jsonl", "--merge", "p.toml", "-o", "p.toml",
    ];
    let (code, _, err) = folder.run(&arguments);
    // The policy goes on to refuse accesses that the file shows.
    assert_eq!(code, Some(1), "{err}");
    assert!(
        err.contains("not added: a write of 0x277 IA32_PAT; p.toml:6 refuses it"),
        "{err}"
    );
    let text = folder.read("p.toml");
    for part in [
        "# Ours.",
        "IA32_PAT",
        "\"r\"",
        "# memory types",
        "first written at e.jsonl:2",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
}

/// Without `-o -`, the same policy goes to a file. Messages go to standard error in both cases.
#[test]
fn learn_from_to_dash_writes_policy_to_standard_output() {
    let base = "policy = 1\n";
    let policy = format!("include = [\"base.toml\"]\n{POLICY}");
    for merge in [&["--merge", "p.toml"][..], &[]] {
        let files = [
            ("e.jsonl", EVENTS),
            ("p.toml", &policy),
            ("base.toml", base),
        ];
        let folder = Folder::new(&files);
        let learn = |output| {
            let learn = ["learn", "--from", "e.jsonl", "-o", output];
            folder.run(&[&learn[..], merge].concat())
        };
        let (code, out, err) = learn("-");
        assert_eq!(fs::read_dir(folder.0.path()).unwrap().count(), files.len());
        assert!(err.contains("the policy was learnt from "), "{err}");
        assert!(!err.contains("next:"), "{err}");
        assert_eq!(learn("new.toml").0, code);
        assert_eq!(out, folder.read("new.toml"));
    }
}

/// The link stays, and its target is made.
#[test]
fn learn_to_dangling_link_makes_target_of_link() {
    let folder = Folder::new(&[("e.jsonl", EVENTS)]);
    for (target, made) in [("new.toml", 0), ("absent/new.toml", 2)] {
        let link = folder.path("link");
        std::os::unix::fs::symlink(target, &link).unwrap();
        let (code, _, err) = folder.run(&["learn", "--from", "e.jsonl", "-o", "link"]);
        assert_eq!(code, Some(made), "{err}");
        assert_eq!(fs::read_link(&link).unwrap(), PathBuf::from(target));
        assert_eq!(folder.path(target).exists(), made == 0);
        fs::remove_file(link).unwrap();
    }
}

#[test]
fn learn_from_recording_without_accesses_exits_2_and_writes_no_file() {
    let folder = Folder::new(&[("none.txt", "# tracer: nop\n")]);
    for from in ["none.txt", "missing"] {
        let (code, _, err) = folder.run(&["learn", "--from", from, "-o", "new.toml"]);
        assert_eq!(code, Some(2), "{err}");
        assert!(!folder.path("new.toml").exists());
    }
}

fn states(folder: &Folder, arguments: &[&str]) -> (Option<i32>, Vec<(String, String)>) {
    let (code, out, err) = folder.run(&[arguments, &["--format", "json"]].concat());
    let report: Value = serde_json::from_str(&out).expect(&err);
    let rows = report["rows"].as_array().unwrap().iter();
    let word = |row: &Value, key: &str| row[key].as_str().unwrap().to_owned();
    let rows = rows.map(|row| (word(row, "index"), word(row, "state")));
    (code, rows.collect())
}

fn row(index: &str, state: &str) -> (String, String) {
    (index.to_owned(), state.to_owned())
}

#[test]
fn review_exits_1_if_policy_leaves_refused_access_undecided() {
    let folder = Folder::new(&[("e.jsonl", EVENTS), ("p.toml", POLICY)]);
    let wanted = vec![
        row("0x277", "decided"),
        row("0x606", "decided"),
        row("0xc0000080", "open"),
    ];
    assert_eq!(
        states(&folder, &["review", "p.toml", "e.jsonl"]),
        (Some(1), wanted)
    );
    let (_, out, _) = folder.run(&["review", "p.toml", "e.jsonl"]);
    for part in [
        "0xc0000080 IA32_EFER: 2 writes, first at e.jsonl:2",
        "      sound to allow: the shipped policy linux-guest allows it",
        "to allow: IA32_EFER = \"w\" below [msrs]",
        "      unsound to allow: the shipped policy no-power-telemetry refuses it",
        "msrgate review p.toml e.jsonl --accept",
    ] {
        assert!(out.contains(part), "{part}: {out}");
    }
    assert_eq!(folder.read("p.toml"), POLICY);
}

#[test]
fn review_accept_allows_undecided_accesses_and_keeps_entries_of_policy_author() {
    let folder = Folder::new(&[("e.jsonl", EVENTS), ("p.toml", POLICY)]);
    let (code, out, err) = folder.run(&["review", "p.toml", "e.jsonl", "--accept"]);
    assert_eq!(code, Some(0), "{out}{err}");
    let text = folder.read("p.toml");
    assert!(
        text.contains("IA32_EFER") && text.contains("# Ours."),
        "{text}"
    );
    assert!(text.contains("IA32_PAT  = \"r\"  # memory types"), "{text}");
    let (code, states) = states(&folder, &["review", "p.toml", "e.jsonl"]);
    assert_eq!((code, states.len()), (Some(0), 2));
}

/// The report shows the entry that `--accept` has written, and the new lines of the entries that stay.
#[test]
fn review_accept_shows_entries_of_policy_as_it_is_written() {
    let folder = Folder::new(&[("e.jsonl", EVENTS), ("p.toml", POLICY)]);
    let (_, out, _) = folder.run(&["review", "p.toml", "e.jsonl"]);
    assert!(out.contains("in full, with a `why`"), "{out}");
    let (_, out, err) = folder.run(&["review", "p.toml", "e.jsonl", "--accept"]);
    let text = folder.read("p.toml");
    let line = |key: &str| 1 + text.lines().position(|line| line.contains(key)).unwrap();
    let (efer, pat) = (line("IA32_EFER"), line("IA32_PAT"));
    let accepted = out.split("accepted: ").nth(1).unwrap();
    for part in [
        "0xc0000080 IA32_EFER: 2 writes",
        &format!("allowed by line {efer}: IA32_EFER: read = \"deny\", write = \"allow\""),
    ] {
        assert!(accepted.contains(part), "{part}: {out}{err}");
    }
    assert!(!accepted.contains("refused by"), "{out}");
    assert!(
        out.contains(&format!("refused by line {pat}: IA32_PAT")),
        "{out}"
    );
}

#[test]
fn review_accept_loosens_entry_only_if_named_and_never_a_final_entry() {
    let folder = Folder::new(&[("e.jsonl", EVENTS), ("p.toml", POLICY)]);
    let review = [
        "review", "p.toml", "e.jsonl", "--accept", "IA32_PAT", "0x606",
    ];
    let (code, out, err) = folder.run(&review);
    assert_eq!(code, Some(1), "EFER is still open: {out}{err}");
    assert!(err.contains("not accepted: a read of 0x606"), "{err}");
    let text = folder.read("p.toml");
    assert!(text.contains("IA32_PAT = \"rw\"  # memory types"), "{text}");
    let (code, _, err) = folder.run(&["review", "p.toml", "e.jsonl", "--accept"]);
    assert_eq!(code, Some(0), "{err}");
    let (code, _, err) = folder.run(&["review", "p.toml", "e.jsonl", "--accept", "0x606"]);
    assert_eq!(code, Some(1), "the named entry is final: {err}");
    let (code, _, err) = folder.run(&["review", "p.toml", "e.jsonl", "--accept", "0x10"]);
    assert_eq!(code, Some(2), "{err}");
}

#[test]
fn review_of_events_of_run_without_refused_access_exits_0() {
    let folder = Folder::new(&[("e.jsonl", GUARDED), ("t.txt", TRACE), ("p.toml", POLICY)]);
    assert_eq!(folder.run(&["review", "p.toml", "e.jsonl"]).0, Some(0));
    // A trace does not show if KVM or a filter gave the guest its #GP.
    let wanted = vec![row("0x1c9", "unclear"), row("0xc0000080", "open")];
    assert_eq!(
        states(&folder, &["review", "p.toml", "t.txt"]),
        (Some(1), wanted)
    );
}

/// An input that shows nothing about a guest is wrong for all commands that read recordings, whether it is an
/// empty file, a device, standard input or a file of other lines. The line about a VM that a run of `exec` guards
/// shows that the run refused nothing so far.
#[test]
fn recording_that_shows_nothing_exits_2_for_each_command_and_kind_of_input() {
    let files = [("p.toml", POLICY), ("empty", ""), ("guarded", GUARDED)];
    let folder = Folder::new(&files);
    let none = "{\"schema\":1,\"event\":\"vm\",\"guarded\":0}\n";
    fs::write(folder.path("none"), none).unwrap();
    for (input, status) in [
        ("empty", 2),
        ("/dev/null", 2),
        ("-", 2),
        ("none", 2),
        ("guarded", 0),
    ] {
        for command in [
            &["review", "p.toml", input][..],
            &["replay", "p.toml", input],
            &["learn", "-o", "-", "--from", input],
        ] {
            let (code, out, err) = folder.run(command);
            assert_eq!(code, Some(status), "{command:?}: {out}{err}");
            assert!(
                err.contains("empty") == (status == 2 && input != "none"),
                "{err}"
            );
        }
    }
    // Nothing is learnt of what the policy of that run allowed.
    let (_, learnt, _) = folder.run(&["learn", "-o", "-", "--from", "guarded"]);
    assert!(
        learnt.contains("is of a run that refused nothing"),
        "{learnt}"
    );
    // One such input among others is wrong, too.
    let several = folder.run(&["review", "p.toml", "guarded", "empty"]);
    assert_eq!(several.0, Some(2), "{}", several.2);
    // The line tells nothing about a single task.
    let task = folder.run(&["replay", "p.toml", "guarded", "--task", "7"]);
    assert_eq!(task.0, Some(2), "{}", task.2);
    // Events that are missing may be refusals.
    fs::write(
        folder.path("lost"),
        format!("{GUARDED}{{\"schema\":1,\"dropped\":9}}\n"),
    )
    .unwrap();
    assert_eq!(folder.run(&["review", "p.toml", "lost"]).0, Some(2));
}

/// After a run that `kill` ended, the recording has one access, and the guest would have made others. `review` and
/// `learn --from` say so, and `review` names what the policy would end the guest for.
#[test]
fn review_and_learn_say_that_killed_guest_was_not_recorded_to_its_end() {
    let event = |action| {
        format!(
            "{{\"schema\":1,\"msr\":\"0x10\",\"access\":\"read\",\"reason\":\"filter\",\"action\":\"{action}\"}}\n"
        )
    };
    let (killed, would) = (event("kill"), event("would-kill"));
    let folder = Folder::new(&[
        ("p.toml", "policy = 1\ndefault = \"kill\"\n"),
        ("killed", &killed),
        ("would", &would),
    ]);
    for (file, says) in [("killed", true), ("would", false)] {
        let (code, out, err) = folder.run(&["review", "p.toml", file]);
        assert_eq!(code, Some(1), "{err}");
        assert!(
            out.contains("refused by `default`, by `kill`, which ends the guest"),
            "{out}"
        );
        let (_, learnt, _) = folder.run(&["learn", "-o", "-", "--from", file]);
        for text in [out, learnt] {
            let note = format!("{file} shows that `kill` ended a guest once");
            assert_eq!(text.contains(&note), says, "{text}");
        }
        let (_, out, _) = folder.run(&["review", "p.toml", file, "--format", "json"]);
        let report: Value = serde_json::from_str(&out).unwrap();
        assert_eq!(report["rows"][0]["kills"], true);
        assert_eq!(report["ends"].as_array().unwrap().len(), usize::from(says));
    }
}

fn unknown_msr(action: &str) -> String {
    format!(
        "{{\"schema\":1,\"msr\":\"0x1c9\",\"access\":\"read\",\"reason\":\"unknown\",\"action\":\"{action}\"}}\n"
    )
}

#[test]
fn review_calls_refusal_moot_only_if_access_surely_fails_without_policy_too() {
    let would_deny = unknown_msr("would-deny").replace("unknown", "filter");
    let succeeds = "a-1 [0] 1.2: kvm_msr: msr_read 1c9 = 0x0\n";
    let faults = "a-1 [0] 1.2: kvm_msr: msr_read 1c9 = 0x0 (#GP)\n";
    let [refused, answered] = ["deny", "unknown"].map(unknown_msr);
    let folder = Folder::new(&[
        ("p.toml", "policy = 1\ndefault = \"deny\"\n"),
        ("refused", &refused),
        ("answered", &answered),
        ("would-deny", &would_deny),
        ("succeeds", succeeds),
        ("faults", faults),
    ]);
    let learnt = folder.run(&["learn", "--from", "refused", "-o", "learnt.toml"]);
    assert_eq!(learnt.0, Some(0), "{}", learnt.2);
    for (events, by_default, by_learnt_entry) in [
        ("refused", "moot", "moot"),
        ("answered", "open", "open"),
        ("would-deny", "open", "open"),
        ("succeeds", "open", "open"),
        ("faults", "unclear", "moot"),
    ] {
        for (policy, state) in [("p.toml", by_default), ("learnt.toml", by_learnt_entry)] {
            let code = Some(i32::from(state != "moot"));
            let wanted = (code, vec![row("0x1c9", state)]);
            assert_eq!(
                states(&folder, &["review", policy, events]),
                wanted,
                "{policy} {events}"
            );
        }
    }
}

/// An event with the action `unknown` shows that the policy's `unknown` answered an access of an unknown
/// MSR, so the learnt policy allows the access.
#[test]
fn learn_allows_access_of_unknown_msr_that_policy_answered() {
    let folder = Folder::new(&[("e.jsonl", &unknown_msr("unknown"))]);
    let (code, _, err) = folder.run(&["learn", "--from", "e.jsonl", "-o", "new.toml"]);
    assert_eq!(code, Some(0), "{err}");
    let text = folder.read("new.toml");
    assert!(
        text.contains("read  = \"allow\"") && !text.contains("#GP"),
        "{text}"
    );
    assert!(text.contains("`unknown` decides about them"), "{text}");
}

#[test]
fn review_of_recording_with_lost_events_never_exits_0() {
    let folder = Folder::new(&[("p.toml", "policy = 1\ndefault = 'allow'\n")]);
    fs::write(
        folder.path("e.jsonl"),
        format!("{EVENTS}{{\"schema\":1,\"dropped\":9}}\n"),
    )
    .unwrap();
    assert_eq!(folder.run(&["review", "p.toml", "e.jsonl"]).0, Some(2));
    assert_eq!(folder.run(&["review", "p.toml", "missing"]).0, Some(2));
    assert_eq!(
        folder
            .run(&["review", "linux-guest", "e.jsonl", "--accept"])
            .0,
        Some(2)
    );
}

const LEARN_EFER: &str = r#"{"schema":1,"msr":"0xc0000080","access":"write","reason":"filter","action":"deny"}
"#;

#[test]
fn learn_replaces_existing_file_only_if_it_is_policy_of_merge_option() {
    let other = "policy = 1\ndefault = \"allow\"\n";
    let folder = Folder::new(&[
        ("e.jsonl", LEARN_EFER),
        ("p.toml", POLICY),
        ("other", other),
    ]);
    let made = Command::new("mkfifo").arg(folder.path("fifo")).status();
    assert!(made.unwrap().success());
    for output in ["other", "e.jsonl", "fifo"] {
        for merge in [&["--merge", "p.toml"][..], &[]] {
            let learn = ["learn", "--from", "e.jsonl", "-o", output];
            let (code, _, err) = folder.run(&[&learn[..], merge].concat());
            assert_eq!(code, Some(2), "{output}: {err}");
            assert!(err.contains(&format!("{output} exists")), "{err}");
        }
    }
    assert_eq!(folder.read("other"), other);
    assert_eq!(folder.read("e.jsonl"), LEARN_EFER);
    std::os::unix::fs::symlink("p.toml", folder.path("link.toml")).unwrap();
    let learn = [
        "learn",
        "--from",
        "e.jsonl",
        "--merge",
        "p.toml",
        "-o",
        "link.toml",
    ];
    assert_eq!(folder.run(&learn).0, Some(0));
    assert!(folder.read("p.toml").contains("IA32_EFER"));
}

/// `learn --merge` refuses to write a policy with includes into another folder, because includes are looked
/// up in the folder of the policy's file.
#[test]
fn learn_refuses_to_write_merged_policy_with_includes_into_another_folder() {
    let org = "policy = 1\n\n[msrs]\n0x606 = { read = \"deny\", write = \"deny\", final = true }\n";
    let policy = "policy = 1\ninclude = [\"org.toml\"]\ndefault = \"deny\"\n";
    let folder = Folder::new(&[("e.jsonl", LEARN_EFER), ("org.toml", "policy = 1\n")]);
    fs::create_dir(folder.path("sub")).unwrap();
    fs::write(folder.path("sub/org.toml"), org).unwrap();
    fs::write(folder.path("sub/p.toml"), policy).unwrap();
    let learn = |output| {
        folder.run(&[
            "learn",
            "--from",
            "e.jsonl",
            "--merge",
            "sub/p.toml",
            "-o",
            output,
        ])
    };
    let (code, _, err) = learn("new.toml");
    assert_eq!(code, Some(2), "{err}");
    assert!(err.contains("sub/p.toml includes files"), "{err}");
    assert!(!folder.path("new.toml").exists());
    let (code, _, err) = learn("sub/new.toml");
    assert_eq!(code, Some(0), "{err}");
    assert!(folder.read("sub/new.toml").contains("org.toml"));
}

#[test]
fn learn_prints_learnt_policy_if_another_process_changed_policy_to_merge() {
    let folder = Folder::new(&[("p.toml", POLICY)]);
    let made = Command::new("mkfifo").arg(folder.path("events")).status();
    assert!(made.unwrap().success());
    let mut command = Command::new(env!("CARGO_BIN_EXE_msrgate"));
    command.args([
        "learn", "--from", "events", "--merge", "p.toml", "-o", "p.toml",
    ]);
    command.current_dir(folder.0.path()).stderr(Stdio::piped());
    let learning = command.stdin(Stdio::null()).spawn().unwrap();
    // This waits until the command has read the policy, and opens the events.
    let mut events = fs::OpenOptions::new()
        .write(true)
        .open(folder.path("events"))
        .unwrap();
    let changed = format!("{POLICY}IA32_EFER = \"r\"\n");
    fs::write(folder.path("p.toml"), &changed).unwrap();
    events.write_all(LEARN_EFER.as_bytes()).unwrap();
    drop(events);
    let ended = learning.wait_with_output().unwrap();
    let err = String::from_utf8(ended.stderr).unwrap();
    assert_eq!(ended.status.code(), Some(2), "{err}");
    assert!(err.contains("another process changed the file"), "{err}");
    assert!(err.contains("learnt: first written at events:1"), "{err}");
    assert_eq!(folder.read("p.toml"), changed);
}

#[test]
fn learn_exits_2_and_writes_no_file_if_learnt_policy_needs_over_16_ranges() {
    let events: String = (0..17)
        .map(|number| LEARN_EFER.replace("0xc0000080", &format!("{:#x}", number * 0x10_0000)))
        .collect();
    let folder = Folder::new(&[("e.jsonl", &events)]);
    let (code, _, err) = folder.run(&["learn", "--from", "e.jsonl", "-o", "new.toml"]);
    assert_eq!(code, Some(2), "{err}");
    assert!(err.contains("new.toml: was not written"), "{err}");
    assert!(!folder.path("new.toml").exists());
}

#[test]
fn review_suggests_change_for_writes_that_keeps_action_of_entry_for_reads() {
    let policy = "policy = 1\ndefault = \"deny\"\n\n[msrs]\nIA32_EFER = { read = { value = 0x500 }, write = \"deny\", why = \"never\" }\n";
    let folder = Folder::new(&[("e.jsonl", LEARN_EFER), ("p.toml", policy)]);
    let (code, out, err) = folder.run(&["review", "p.toml", "e.jsonl"]);
    assert_eq!(code, Some(0), "{out}{err}");
    assert!(
        out.contains("to allow, in line 5: write = \"allow\""),
        "{out}"
    );
    let (code, _, err) = folder.run(&["review", "p.toml", "e.jsonl", "--accept", "IA32_EFER"]);
    assert_eq!(code, Some(0), "{err}");
    assert!(
        err.contains("its author's why, which may not fit any more: never"),
        "{err}"
    );
    let text = folder.read("p.toml");
    assert!(
        text.contains("0x500") && text.contains("write = \"allow\""),
        "{text}"
    );
}

#[test]
fn review_lists_write_that_policy_may_refuse_depending_on_value() {
    let event = |msr: &str| {
        format!(
            "{{\"schema\":1,\"msr\":\"{msr}\",\"access\":\"write\",\"reason\":\"filter\",\"action\":\"deny\"}}\n"
        )
    };
    // `register` and `mask`: what they answer to a write that is not recorded depends on its value, too.
    for (entry, to_allow) in [
        (
            "IA32_LSTAR = { register = { reset = 0, mask = 0x1f } }",
            "line 5 answers reads and writes together; to allow, change that entry as a whole",
        ),
        (
            "IA32_LSTAR = { read = \"allow\", write = { mask = 0x1f } }",
            "to allow, in line 5: IA32_LSTAR = \"rw\"",
        ),
    ] {
        let policy = format!("policy = 1\ndefault = \"deny\"\n\n[msrs]\n{entry}\n");
        let folder = Folder::new(&[("p.toml", &policy), ("e.jsonl", &event("0xc0000082"))]);
        let wanted = vec![row("0xc0000082", "decided")];
        assert_eq!(
            states(&folder, &["review", "p.toml", "e.jsonl"]),
            (Some(0), wanted)
        );
        let (_, out, _) = folder.run(&["review", "p.toml", "e.jsonl"]);
        assert!(
            out.contains("may be refused") && out.contains(to_allow),
            "{out}"
        );
        let accept = ["review", "p.toml", "e.jsonl", "--accept", "IA32_LSTAR"];
        let (code, _, err) = folder.run(&accept);
        assert_eq!(code, Some(1), "{err}");
        assert!(err.contains("change p.toml:5 by hand: IA32_LSTAR"), "{err}");
        assert_eq!(folder.read("p.toml"), policy);
    }
    let pinned = "policy = 1\ndefault = \"deny\"\n\n[msrs]\nIA32_LSTAR = { read = \"allow\", write = \"pin\" }\n";
    let trace = "a-1 [0] 1.2: kvm_msr: msr_write c0000082 = 0x1\na-1 [0] 1.3: kvm_msr: msr_write c0000082 = 0x2\n";
    let folder = Folder::new(&[
        ("p.toml", pinned),
        ("e.jsonl", &event("0xc0000082")),
        ("t.txt", trace),
    ]);
    for recording in ["e.jsonl", "t.txt"] {
        let wanted = vec![row("0xc0000082", "decided")];
        assert_eq!(
            states(&folder, &["review", "p.toml", recording]),
            (Some(0), wanted)
        );
        let (_, out, _) = folder.run(&["review", "p.toml", recording]);
        assert!(out.contains("may be refused"), "{out}");
    }
    let (code, _, err) = folder.run(&["review", "p.toml", "e.jsonl", "--accept", "IA32_LSTAR"]);
    assert_eq!(code, Some(1), "{err}");
    assert!(
        err.contains("change p.toml:5 by hand: IA32_LSTAR; to allow, in line 5"),
        "{err}"
    );
    assert_eq!(folder.read("p.toml"), pinned);
}

#[test]
fn review_accept_changes_other_entries_if_entry_in_when_section_needs_manual_change() {
    let policy = "policy = 1\ndefault = \"deny\"\n\n[[when]]\ncpu = { vendor = \"AuthenticAMD\" }\n[when.msrs]\nIA32_PAT = \"none\"\n";
    let folder = Folder::new(&[("e.jsonl", EVENTS), ("p.toml", policy)]);
    let cpu = ["--cpu", "AuthenticAMD:25:1"];
    let review = [&["review", "p.toml", "e.jsonl"][..], &cpu].concat();
    let (_, out, err) = folder.run(&review);
    assert!(
        out.contains("review p.toml e.jsonl --cpu AuthenticAMD:25:0x1:0 --accept"),
        "{out}{err}"
    );
    let accept = [&review[..], &["--accept", "IA32_PAT", "IA32_EFER"]].concat();
    let (code, out, err) = folder.run(&accept);
    assert_eq!(code, Some(1), "{out}{err}");
    let text = folder.read("p.toml");
    assert!(text.contains("IA32_EFER"), "{text}");
    // The new `[msrs]` stands above the section, and has moved its line.
    let mut lines = text.lines();
    let pat = 1 + lines.position(|line| line.starts_with("IA32_PAT")).unwrap();
    assert!(pat > 7, "{text}");
    let change = format!("change p.toml:{pat} by hand: IA32_PAT; to allow, in line {pat}: ");
    assert!(err.contains(&change), "{err}");
    assert!(
        out.contains(&format!("refused by line {pat}: IA32_PAT")),
        "{out}"
    );
}

#[test]
fn review_says_that_only_default_action_decides_about_msr_0xffffffff() {
    let event = LEARN_EFER.replace("0xc0000080", "0xffffffff");
    let folder = Folder::new(&[
        ("e.jsonl", &event),
        ("p.toml", "policy = 1\ndefault = \"deny\"\n"),
    ]);
    let (code, out, err) = folder.run(&["review", "p.toml", "e.jsonl"]);
    assert_eq!(code, Some(0), "{err}");
    assert!(
        out.contains("only `default` decides about this MSR"),
        "{out}"
    );
}

/// `review --accept` allows a write that an included entry denies, by an entry with `override`, which
/// replaces the whole included entry. If the new entry can say the same about reads, it does; otherwise a
/// person has to change the included file.
#[test]
fn review_accept_keeps_read_action_of_included_entry_or_asks_for_manual_change() {
    let policy = "policy = 1\ninclude = [\"base.toml\"]\ndefault = \"deny\"\n";
    for (read, code) in [("\"allow\"", 0), ("{ value = 0x500 }", 1)] {
        let base =
            format!("policy = 1\n\n[msrs]\nIA32_EFER = {{ read = {read}, write = \"deny\" }}\n");
        let folder = Folder::new(&[
            ("e.jsonl", LEARN_EFER),
            ("p.toml", policy),
            ("base.toml", &base),
        ]);
        let accept = ["review", "p.toml", "e.jsonl", "--accept", "IA32_EFER"];
        let (got, out, err) = folder.run(&accept);
        assert_eq!(got, Some(code), "{out}{err}");
        let text = folder.read("p.toml");
        if code == 0 {
            assert!(text.contains("read     = \"allow\""), "{text}");
        } else {
            assert!(err.contains("base.toml:4 by hand: IA32_EFER"), "{err}");
            assert_eq!(text, policy);
        }
    }
}
