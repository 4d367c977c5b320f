//! Tests of `--events`: the file has an event for each refused access, or says how many events are missing.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Read as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use msrgate_testing::seed::seed;
use serde_json::Value;

use crate::lab::{ALLOWS, DENIES, KILLS, Lab, MOUNTS, Ran, is_about_vms, ran, starts};

/// The number of refused reads that the VMM `refused many` makes. The number is below the limit on events
/// per second.
const MANY: u64 = 900;

/// The numbers of events that a file of `--events` tells of.
#[derive(Debug, Default, PartialEq, Eq)]
struct Told {
    events: u64,
    held_back: u64,
    dropped: u64,
}

/// Counts the events that a file of `--events` tells of. Asserts that each line is a whole JSON object.
fn told(text: &str) -> Told {
    assert!(text.is_empty() || text.ends_with('\n'), "{text}");
    let mut told = Told::default();
    for line in text.lines().filter(|line| !is_about_vms(line)) {
        let line: Value = serde_json::from_str(line).unwrap();
        let number = |word: &str| line.get(word).and_then(Value::as_u64);
        if let Some(number) = number("held_back") {
            told.held_back += number;
        } else if let Some(number) = number("dropped") {
            told.dropped += number;
        } else {
            assert_eq!(line["msr"], "0x8b");
            told.events += 1;
        }
    }
    told
}

/// Returns the number in the message `N events are missing in FILE` on standard error.
fn missing(ran: &Ran, file: &str, why: &str) -> u64 {
    let tail = format!(" events are missing in {file}: {why}");
    let line = ran.err.lines().find(|line| line.contains(&tail));
    let number = line.and_then(|line| line.strip_prefix("msrgate: ")?.split(' ').next());
    number
        .unwrap_or_else(|| panic!("{}", ran.err))
        .parse()
        .unwrap()
}

#[test]
fn events_file_on_full_disk_has_whole_lines_and_message_counts_missing_events() {
    let Some(lab) = Lab::with_kvm(DENIES) else {
        return;
    };
    if !starts(MOUNTS) {
        return;
    }
    let mut exec = lab.exec(&["--events", "disk/events"]);
    exec.arg(lab.build("refused.c", &[])).arg("many");
    let script = "mkdir disk && mount -t tmpfs -o size=16k none disk && \"$@\"; while ls msrgate-* >/dev/null 2>&1; do sleep 0.05; done; cp disk/events events";
    let mut command = lab.script(MOUNTS, script, &exec);
    let ran = ran(&mut command);
    assert!(ran.err.contains("refused 900 accesses"), "{}", ran.err);
    let told = told(&lab.events("events"));
    let missing = missing(&ran, "disk/events", "No space left on device");
    assert!(told.events > 20, "{told:?}");
    assert_eq!(told.events + missing, MANY, "{told:?}");
}

#[test]
fn stalled_reader_of_events_pipe_does_not_delay_vmm_and_lost_events_are_counted() {
    let Some(lab) = Lab::with_kvm(DENIES) else {
        return;
    };
    let vmm = lab.build("refused.c", &[]);
    let made = Command::new("mkfifo").arg(lab.path("events")).status();
    assert!(made.unwrap().success());
    let mut options = File::options();
    options.read(true).custom_flags(0o4000);
    let mut reader = options.open(lab.path("events")).unwrap();
    let ran = ran(lab.exec(&["--events", "events"]).arg(vmm).arg("many"));
    assert_eq!(ran.status, 0, "{}", ran.err);
    assert!(ran.err.contains("refused 900 accesses"), "{}", ran.err);
    lab.assert_no_page_is_left();
    let mut text = String::new();
    reader.read_to_string(&mut text).unwrap();
    let told = told(&text);
    let missing = missing(&ran, "events", "Resource temporarily unavailable");
    assert!(told.events > 100, "{told:?}");
    assert_eq!(told.events + missing, MANY, "{told:?}");
}

#[test]
fn access_with_action_kill_is_written_to_events_file() {
    let Some(lab) = Lab::with_kvm(KILLS) else {
        return;
    };
    let strict = lab.build("strict.c", &[]);
    let ran = ran(lab.exec(&["--events", "events"]).arg(strict));
    assert_eq!(ran.status, 137, "{}", ran.err);
    lab.assert_no_page_is_left();
    let text = lab.events("events");
    let event: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(event["action"], "kill");
}

#[test]
fn events_file_of_vmm_that_crashes_has_event_for_every_refused_access() {
    let Some(lab) = Lab::with_kvm(DENIES) else {
        return;
    };
    let vmm = lab.build("refused.c", &[]);
    let ran = ran(lab.exec(&["--events", "events"]).arg(vmm).arg("crash"));
    assert_eq!(ran.status, 128 + libc::SIGSEGV, "{}", ran.err);
    lab.assert_no_page_is_left();
    let told = told(&lab.events("events"));
    let expected = Told {
        events: MANY,
        ..Told::default()
    };
    assert_eq!(told, expected);
}

/// Twelve VMs make more events at once than a ring has room for, and the last access ends the VMM. The file
/// has or counts every event, and has the event of the last access.
#[test]
fn events_of_twelve_vms_at_once_do_not_overwrite_each_other() {
    const VMS: u64 = 12;
    let policy = "policy = 1\ndefault = 'allow'\n[msrs]\n0x8b = { read = 'deny', write = 'allow' }\n0x10 = { read = 'kill', write = 'allow' }\n";
    let Some(lab) = Lab::with_kvm(policy) else {
        return;
    };
    let vmm = lab.build("refused.c", &[]);
    let ran = ran(lab.exec(&["--events", "events"]).arg(vmm).arg("bursts"));
    assert_eq!(ran.status, 137, "{}", ran.err);
    lab.assert_no_page_is_left();
    let text = lab.events("events");
    let is_kill = |line: &&str| line.contains("\"action\":\"kill\"");
    let (kills, rest): (Vec<_>, Vec<_>) = text.split_inclusive('\n').partition(is_kill);
    assert_eq!(kills.len(), 1, "{kills:?}");
    let told = told(&rest.concat());
    assert_eq!(
        (told.dropped, told.events + told.held_back),
        (0, VMS * MANY)
    );
}

/// If the file already ends in a line without a line feed, the next event begins on a line of its own.
#[test]
fn event_is_written_on_its_own_line_after_line_without_line_feed() {
    for (before, after) in [
        ("", ""),
        ("{}\n", "{}\n"),
        ("{\"schema\":1", "{\"schema\":1\n"),
    ] {
        let Some(lab) = Lab::with_kvm(DENIES) else {
            return;
        };
        fs::write(lab.path("events"), before).unwrap();
        let strict = lab.build("strict.c", &[]);
        let ran = ran(lab.exec(&["--events", "events"]).arg(strict));
        assert_eq!(ran.status, 0, "{}", ran.err);
        lab.assert_no_page_is_left();
        let text = fs::read_to_string(lab.path("events")).unwrap();
        assert!(text.starts_with(after), "{text}");
        let text = lab.events("events");
        let event = text.strip_prefix(after).unwrap_or_else(|| panic!("{text}"));
        let event: Value = serde_json::from_str(event).unwrap();
        assert_eq!(event["msr"], "0x8b");
    }
}

/// An event has the file and line that decided, and the policy's digest: if an entry of the policy decides,
/// if its default action decides, and if an entry of an included file decides.
#[test]
fn event_names_file_that_decided_and_policy_digest_for_entry_default_and_include() {
    let default = "policy = 1\ndefault = 'deny'\n";
    let includes = "policy = 1\ndefault = 'allow'\ninclude = ['part.toml']\n";
    for (policy, file, line) in [
        (DENIES, "guest.toml", Some(4)),
        (default, "guest.toml", None),
        (includes, "part.toml", Some(3)),
    ] {
        let Some(lab) = Lab::with_kvm(policy) else {
            return;
        };
        let part = "policy = 1\n[msrs]\n0x8b = { read = 'deny', write = 'allow' }\n";
        fs::write(lab.path("part.toml"), part).unwrap();
        let strict = lab.build("strict.c", &[]);
        ran(lab.exec(&["--events", "events"]).arg(strict));
        lab.assert_no_page_is_left();
        let text = lab.events("events");
        let event: Value = serde_json::from_str(text.lines().next().unwrap()).unwrap();
        assert_eq!(event["policy"], file, "{text}");
        assert_eq!(event.get("line").and_then(Value::as_u64), line, "{text}");
        assert_eq!(event["digest"].as_str().map(str::len), Some(64), "{text}");

        let mut replay = Command::new(env!("CARGO_BIN_EXE_msrgate"));
        replay.args(["replay", "guest.toml", "events"]);
        let replayed = ran(replay.current_dir(lab.folder.path()).env("NO_COLOR", "1"));
        assert_eq!(replayed.status, 1, "{}{}", replayed.out, replayed.err);
        let wanted = "of 1 access, 1 would be refused";
        assert!(replayed.out.contains(wanted), "{}", replayed.out);
    }
}

/// The VMM is killed while its two vCPUs make nothing but refused reads. The events file then tells of as
/// many accesses as the summary counts: at most two of them, which were counted but have no event yet, are
/// reported as dropped.
#[test]
fn events_file_of_killed_vmm_tells_of_as_many_accesses_as_summary_counts() {
    const ROUNDS: u64 = 10;
    let seed = seed();
    let mut events = 0;
    for round in 0..ROUNDS {
        let Some(lab) = Lab::with_kvm(DENIES) else {
            return;
        };
        let vmm = lab.build("refused.c", &[]);
        let options = ["--events", "events", "--summary", "summary"];
        let mut command = lab.exec(&options);
        command.arg(&vmm).arg("for-ever").stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        let random = (seed ^ round).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40;
        thread::sleep(Duration::from_micros(20_000 + random % 300_000));
        child.kill().unwrap();
        child.wait().unwrap();
        lab.assert_no_page_is_left();
        let summary = fs::read_to_string(lab.path("summary")).unwrap();
        let counted = summary
            .split_once("refused ")
            .and_then(|(_, rest)| rest.split([' ', '\n']).next())
            .map(|number| number.parse::<u64>().unwrap_or(0));
        let told = told(&lab.events("events"));
        let all = told.events + told.held_back + told.dropped;
        assert_eq!(
            Some(all),
            counted,
            "seed {seed:#x}, round {round}: {told:?}"
        );
        assert!(told.dropped <= 2, "seed {seed:#x}: {told:?}");
        events += told.events;
    }
    assert!(events > 0, "seed {seed:#x}");
}

/// A run that refuses nothing leaves a file that says so, and `review` and `replay` answer yes. They take no
/// file for such a run that has no line, as that of a run without a VM.
#[test]
fn events_file_of_run_without_refusal_shows_that_run_had_vm() {
    let Some(lab) = Lab::with_kvm(ALLOWS) else {
        return;
    };
    let strict = lab.build("strict.c", &[]);
    let with = ran(lab.exec(&["--events", "with"]).arg(strict));
    let without = ran(lab.exec(&["--events", "without"]).arg("true"));
    assert_eq!([with.status, without.status], [0, 0], "{}", with.err);
    lab.assert_no_page_is_left();
    let texts = ["with", "without"].map(|file| fs::read_to_string(lab.path(file)).unwrap());
    let guarded = "{\"schema\":1,\"event\":\"vm\",\"guarded\":1}\n";
    assert_eq!(texts, [guarded, ""]);
    for (file, status) in [("with", 0), ("without", 2)] {
        for command in ["review", "replay"] {
            let mut reads = Command::new(env!("CARGO_BIN_EXE_msrgate"));
            reads.args([command, "guest.toml", file]);
            let read = ran(reads.current_dir(lab.folder.path()));
            assert_eq!(read.status, status, "{command} {file}: {}", read.err);
        }
    }
}

/// An access that an entry with `log = "none"` refuses or answers has no line in the file, and does not count for the limit. An audit
/// has a line for what it would refuse, at any level, and so has a kill.
#[test]
fn events_file_has_no_line_for_entry_with_log_none_outside_of_audit() {
    for (action, options, status, lines) in [
        ("'deny'", &[][..], 0, vec![]),
        ("{ value = 5 }", &[], 0, vec![]),
        ("'deny'", &["--audit"], 0, vec!["would-deny"]),
        ("'kill'", &[], 137, vec!["kill"]),
    ] {
        let entry = format!("0x8b = {{ read = {action}, write = 'allow', log = 'none' }}");
        let policy = format!("policy = 1\ndefault = 'allow'\n[msrs]\n{entry}\n");
        let Some(lab) = Lab::with_kvm(&policy) else {
            return;
        };
        let vmm = lab.build("strict.c", &[]);
        let options = [&["--events", "events"], options].concat();
        let ran = ran(lab.exec(&options).arg(vmm));
        assert_eq!(ran.status, status, "{}", ran.err);
        lab.assert_no_page_is_left();
        let events = lab.events("events");
        let actions = events.lines().map(|line| {
            let event: Value = serde_json::from_str(line).unwrap();
            event["action"].as_str().unwrap().to_owned()
        });
        assert_eq!(actions.collect::<Vec<_>>(), lines, "{entry}");
    }
}
