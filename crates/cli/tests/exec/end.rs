//! Tests of the end of a run: the summary, the file of events, and the removal of the state page.

use std::fs;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use crate::lab::{ALLOWS, DENIES, LOGS, Lab, ran, starts};

/// Returns the beginning of the summary of a run in which guests read MSR 0x8b and the policy refused it.
fn summary(vms: &str, reads: &str, accesses: &str) -> String {
    format!(
        "msrgate: guest.toml guarded {vms}, and refused {accesses}\n  {reads} of 0x8b IA32_BIOS_SIGN_ID by guest.toml:4, first by vCPU 0 after "
    )
}

/// Waits until a file in the lab ends with a line feed, and returns its text.
fn text_of(lab: &Lab, name: &str) -> String {
    for _ in 0..400 {
        let text = fs::read_to_string(lab.path(name)).unwrap_or_default();
        if text.ends_with('\n') {
            return text;
        }
        thread::sleep(Duration::from_millis(50));
    }
    panic!("{name} has no text");
}

#[test]
fn summary_after_script_covers_all_vmms_that_script_started() {
    let Some(lab) = Lab::with_kvm(DENIES) else {
        return;
    };
    let strict = lab.build("strict.c", &[]);
    // Each VMM writes a line byte by byte: into one file the lines would be mixed.
    let script = "$0 >one & $0 >other; wait; cat one other";
    let ran = ran(lab.exec(&[]).args(["sh", "-c", script]).arg(strict));
    assert_eq!((&*ran.out, ran.status), ("!\n!\n", 0), "{}", ran.err);
    let wanted = summary("2 VMs", "2 reads", "2 accesses");
    assert!(ran.err.starts_with(&wanted), "{}", ran.err);
    assert_eq!(ran.err.lines().count(), 2, "{}", ran.err);
    lab.assert_no_page_is_left();
}

/// The summary is printed after a VMM in a PID namespace, although the process IDs in the state page are not
/// those that the watcher sees.
#[test]
fn summary_is_printed_after_vmm_in_another_pid_namespace() {
    let Some(lab) = Lab::with_kvm(DENIES) else {
        return;
    };
    let unshare = [
        "unshare",
        "--user",
        "--map-root-user",
        "--pid",
        "--fork",
        "--mount-proc",
    ];
    if !starts(&unshare) {
        return;
    }
    let strict = lab.build("strict.c", &[]);
    // The VMM has the process ID 1 or 2: a process with this ID lives outside.
    for script in ["exec $0", "$0; exit $?"] {
        let ran = ran(lab
            .exec(&[])
            .args(unshare)
            .args(["sh", "-c", script])
            .arg(&strict));
        assert_eq!((&*ran.out, ran.status), ("!\n", 0), "{}", ran.err);
        let wanted = summary("1 VM", "1 read", "1 access");
        assert!(ran.err.starts_with(&wanted), "{}", ran.err);
    }
    lab.assert_no_page_is_left();
}

/// A shell script that starts a VMM in the background and ends. The VMM's guest makes its access only later,
/// when the test writes to the named pipe `go`.
const LATER: &str = "(read go <go; $0 >console) >/dev/null 2>&1 & true";

fn later(lab: &Lab) {
    let made = Command::new("mkfifo").arg(lab.path("go")).status();
    assert!(made.unwrap().success());
}

#[test]
fn summary_file_has_accesses_refused_after_first_process_of_run_ended() {
    for options in [
        &["--summary", "summary"][..],
        &["--summary", "summary", "--fail-open"],
    ] {
        let Some(lab) = Lab::with_kvm(DENIES) else {
            return;
        };
        let strict = lab.build("strict.c", &[]);
        later(&lab);
        let started = ran(lab.exec(options).args(["sh", "-c", LATER]).arg(strict));
        assert_eq!(started.status, 0, "{}", started.err);
        assert!(!started.err.contains("guarded"), "{}", started.err);
        fs::write(lab.path("go"), "go\n").unwrap();
        let text = text_of(&lab, "summary");
        assert!(
            text.starts_with(&summary("1 VM", "1 read", "1 access")),
            "{text}"
        );
        assert_eq!(fs::read_to_string(lab.path("console")).unwrap(), "!\n");
        lab.assert_no_page_is_left();
    }
}

/// After a run in which no VM was made, only the file of `--summary` says so. Standard error stays empty.
#[test]
fn summary_file_after_run_without_vm_says_that_no_vm_was_guarded() {
    let Some(lab) = Lab::with_kvm(DENIES) else {
        return;
    };
    let started = ran(lab.exec(&["--summary", "summary"]).arg("true"));
    assert_eq!((&*started.err, started.status), ("", 0));
    assert_eq!(
        text_of(&lab, "summary"),
        "msrgate: guest.toml guarded no VM: no program of the run has got one of KVM\n"
    );
    let started = ran(lab.exec(&[]).arg("true"));
    assert_eq!((&*started.err, started.status), ("", 0));
}

#[test]
fn events_under_fail_open_are_written_until_last_process_of_run_ends() {
    let Some(lab) = Lab::with_kvm(DENIES) else {
        return;
    };
    let strict = lab.build("strict.c", &[]);
    later(&lab);
    let options = ["--events", "events", "--fail-open", "--quiet"];
    let started = ran(lab.exec(&options).args(["sh", "-c", LATER]).arg(strict));
    assert_eq!(started.status, 0, "{}", started.err);
    thread::sleep(Duration::from_millis(300));
    fs::write(lab.path("go"), "go\n").unwrap();
    lab.assert_no_page_is_left();
    let text = lab.events("events");
    assert!(text.contains("\"msr\":\"0x8b\""), "{text}");
}

/// If standard error is a file, it gets the summary when the VMM in the background has ended, and not when
/// the first process ends.
#[test]
fn standard_error_that_is_a_file_gets_summary_after_background_vmm_ended() {
    let Some(lab) = Lab::with_kvm(DENIES) else {
        return;
    };
    let strict = lab.build("strict.c", &[]);
    later(&lab);
    let mut command = lab.exec(&[]);
    command.args(["sh", "-c", LATER]).arg(strict);
    command
        .stdout(Stdio::null())
        .stderr(fs::File::create(lab.path("log")).unwrap());
    assert!(command.status().unwrap().success());
    fs::write(lab.path("go"), "go\n").unwrap();
    let text = text_of(&lab, "log");
    assert!(
        text.starts_with(&summary("1 VM", "1 read", "1 access")),
        "{text}"
    );
}

/// When the first process ends, the other process of the run is a program without the library, so no process
/// has the state page mapped. The summary in the file still has the access of the VMM that this process
/// starts later.
#[test]
fn standard_error_that_is_a_file_gets_summary_of_vmm_that_starts_after_first_process() {
    let Some(lab) = Lab::with_kvm(DENIES) else {
        return;
    };
    let strict = lab.build("strict.c", &[]);
    later(&lab);
    let made = Command::new("mkfifo").arg(lab.path("ready")).status();
    assert!(made.unwrap().success());
    let without = "echo >ready; read go <go; LD_PRELOAD=$1 exec $0 >console";
    let script =
        "env -u LD_PRELOAD sh -c \"$1\" $0 \"$LD_PRELOAD\" >/dev/null 2>&1 & read ready <ready";
    let mut command = lab.exec(&[]);
    command.args(["sh", "-c", script]).arg(strict).arg(without);
    command
        .stdout(Stdio::null())
        .stderr(fs::File::create(lab.path("log")).unwrap());
    assert!(command.status().unwrap().success());
    // The watcher sees the end of the first process.
    thread::sleep(Duration::from_millis(300));
    fs::write(lab.path("go"), "go\n").unwrap();
    let text = text_of(&lab, "log");
    assert!(
        text.starts_with(&summary("1 VM", "1 read", "1 access")),
        "{text}"
    );
}

/// If the summary cannot be written to the file of `--summary`, here `/dev/full`, standard error says so.
#[test]
fn error_of_writing_summary_file_is_reported_on_standard_error() {
    let Some(lab) = Lab::with_kvm(DENIES) else {
        return;
    };
    let strict = lab.build("strict.c", &[]);
    let ran = ran(lab.exec(&["--summary", "/dev/full"]).arg(strict));
    let told = "msrgate: the summary cannot be written: No space left on device (os error 28)\n";
    assert_eq!((&*ran.out, &*ran.err, ran.status), ("!\n", told, 0));
}

/// The policy refuses a read of 0x8b with `log = "none"`. The summary counts the refused read, but does not
/// list it.
#[test]
fn summary_counts_but_does_not_list_access_refused_with_log_none() {
    let policy = "policy = 1\ndefault = 'allow'\n[msrs]\n0x8b = { read = 'deny', write = 'allow', log = 'none' }\n";
    for (options, end) in [
        (
            &[][..],
            "refused nothing that it logs; in silence it refused 1 access (log = \"none\")\n",
        ),
        (
            &["--audit"],
            "would have refused nothing that it logs; in silence it would have refused at least 1 access (log = \"none\")\n  an audit counts the first access of each kind in a VM, and lets it and all others through\n",
        ),
    ] {
        let Some(lab) = Lab::with_kvm(policy) else {
            return;
        };
        let strict = lab.build("strict.c", &[]);
        let ran = ran(lab.exec(options).arg(strict));
        let wanted = format!("msrgate: guest.toml guarded 1 VM, and {end}");
        assert_eq!(ran.err, wanted);
    }
}

/// If the policy cannot be installed in a VM, the VMM does not get the VM, and the summary does not count
/// it.
#[test]
fn summary_counts_only_vms_in_which_policy_was_installed() {
    let Some(lab) = Lab::with_kvm(ALLOWS) else {
        return;
    };
    let vmm = lab.build("refused.c", &[]);
    let ran = ran(lab.exec(&[]).arg(vmm).arg("no-descriptor"));
    assert_eq!((&*ran.out, ran.status), ("a VM\nno VM\n", 0), "{}", ran.err);
    assert!(
        ran.err
            .ends_with("guest.toml guarded 1 VM, and refused nothing\n"),
        "{}",
        ran.err
    );
}

#[test]
fn allowed_access_that_policy_logs_is_in_events_file_and_in_summary() {
    let Some(lab) = Lab::with_kvm(LOGS) else {
        return;
    };
    let strict = lab.build("strict.c", &[]);
    let ran = ran(lab.exec(&["--events", "events"]).arg(strict));
    assert_eq!((&*ran.out, ran.status), (".\n", 0), "{}", ran.err);
    let wanted = "msrgate: guest.toml guarded 1 VM, and refused nothing\n  first read of 0x8b IA32_BIOS_SIGN_ID, logged by guest.toml:4, by vCPU 0 after ";
    assert!(ran.err.starts_with(wanted), "{}", ran.err);
    let events = lab.events("events");
    assert_eq!(events.lines().count(), 1, "{events}");
    let event: serde_json::Value = serde_json::from_str(&events).unwrap();
    assert_eq!(
        (&event["action"], &event["msr"], &event["line"]),
        (&"allow".into(), &"0x8b".into(), &4.into())
    );
}

#[test]
fn summary_calls_policy_from_standard_input_standard_input() {
    let Some(lab) = Lab::with_kvm(ALLOWS) else {
        return;
    };
    let strict = lab.build("strict.c", &[]);
    let mut exec = lab.exec(&[]);
    exec.arg(strict);
    let script = "printf \"policy = 1\\ndefault = 'deny'\\n\" | \"$1\" exec - -- \"$5\"";
    let mut command = lab.script(&[], script, &exec);
    let ran = ran(&mut command);
    let wanted = "msrgate: standard input guarded 1 VM, and refused 1 access\n  1 read of 0x8b IA32_BIOS_SIGN_ID by the default of standard input, first by";
    assert!(ran.err.starts_with(wanted), "{}", ran.err);
}

/// After a run's watcher was killed, the next run removes the state page that the earlier run left. The run
/// removes neither a state page in use nor another file.
#[test]
fn run_removes_unused_state_pages_of_earlier_runs_and_no_other_file() {
    let Some(lab) = Lab::with_kvm(ALLOWS) else {
        return;
    };
    let page = |name: &str, text: &str| fs::write(lab.path(name), text).unwrap();
    page("msrgate-dead", "MSRGATE\nand more");
    page("msrgate-used", "MSRGATE\nand more");
    page("msrgate-note", "something else");
    let used = fs::OpenOptions::new()
        .append(true)
        .open(lab.path("msrgate-used"))
        .unwrap();
    assert_eq!(ran(lab.exec(&[]).arg("true")).status, 0);
    for _ in 0..200 {
        if !lab.path("msrgate-dead").exists() {
            break;
        }
        thread::sleep(Duration::from_millis(20));
    }
    let there =
        ["msrgate-dead", "msrgate-used", "msrgate-note"].map(|name| lab.path(name).exists());
    assert_eq!(there, [false, true, true]);
    drop(used);
}

/// The VMM can write the state page, so a guest that controls the VMM can destroy it. A message at the end
/// of the run says that the page was damaged.
#[test]
fn message_after_run_says_if_vmm_damaged_state_page() {
    let zeros = "dd conv=notrunc status=none bs=8 count=1 if=/dev/zero of=";
    for damage in ["truncate -s 0 ", "truncate -s 4096 ", zeros] {
        let Some(lab) = Lab::with_kvm(DENIES) else {
            return;
        };
        let strict = lab.build("strict.c", &[]);
        let script = format!("$0; {damage}\"$MSRGATE_STATE\"");
        for options in [&[][..], &["--quiet"], &["--summary", "summary"]] {
            let ran = ran(lab.exec(options).args(["sh", "-c", &script]).arg(&strict));
            assert_eq!((&*ran.out, ran.status), ("!\n", 0), "{}", ran.err);
            let said = "msrgate: guest.toml: what was refused is not known, as the VMM has damaged the run's state page: it";
            assert!(
                ran.err.starts_with(said),
                "{damage} {options:?}: {}",
                ran.err
            );
            assert_eq!(ran.err.lines().count(), 1, "{}", ran.err);
            lab.assert_no_page_is_left();
        }
        assert!(text_of(&lab, "summary").contains("has damaged the run's state page"));
    }
}
