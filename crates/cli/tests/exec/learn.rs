//! Tests of `msrgate learn` with QEMU and small VMMs.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use crate::lab::{Lab, Ran, library, ran, skip};
use crate::qemu;

/// Returns the command `msrgate learn OPTIONS -- …`, to which the test adds the VMM.
fn learn(lab: &Lab, options: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_msrgate"));
    command.arg("learn").args(options).arg("--");
    command.current_dir(lab.folder.path()).stdin(Stdio::null());
    command
        .env("MSRGATE_PRELOAD", library())
        .env("NO_COLOR", "1");
    command.env("MSRGATE_STATE_DIR", lab.folder.path());
    command
}

const DENIES_ALL: &str = "policy = 1\ndefault = 'deny'\n";

fn kill(signal: &str, pid: &str) {
    let status = Command::new("kill").args([signal, pid]).status();
    assert!(status.unwrap().success(), "{signal} {pid}");
}

fn msrgate(lab: &Lab, arguments: &[&str]) -> Ran {
    let mut command = Command::new(env!("CARGO_BIN_EXE_msrgate"));
    command.args(arguments).current_dir(lab.folder.path());
    ran(command.env("NO_COLOR", "1"))
}

/// `learn` writes a policy from a run of QEMU. Under that policy the guest prints the same as before, and no
/// access is refused. A second run adds nothing to the policy.
#[test]
fn qemu_guest_runs_under_learnt_policy_as_without_policy() {
    for guest in qemu::labs(DENIES_ALL) {
        let run = |mut command: Command, console: &str| {
            qemu::machine(command.arg(&guest.qemu), &format!("file:{console}"));
            let ran = ran(&mut command);
            assert_eq!(ran.status, qemu::DONE, "{}", ran.err);
            ran.err
        };
        let read = |name: &str| fs::read_to_string(guest.path(name)).unwrap();
        let first = run(learn(&guest, &["-o", "learnt.toml"]), "plain");
        let wanted = "learnt.toml was learnt from a run with 1 VM, which added";
        assert!(first.contains(wanted), "{first}");
        let text = read("learnt.toml");
        assert!(text.contains("IA32_BIOS_SIGN_ID"), "{text}");
        assert_eq!(
            msrgate(&guest, &["fmt", "--check", "learnt.toml"]).status,
            0
        );
        assert_eq!(msrgate(&guest, &["check", "learnt.toml"]).status, 0);

        fs::copy(guest.path("learnt.toml"), guest.path("guest.toml")).unwrap();
        let guarded = run(guest.exec(&[]), "guarded");
        assert!(guarded.contains("refused nothing"), "{guarded}");
        assert_eq!(read("guarded"), read("plain"));

        let merge = ["-o", "learnt.toml", "--merge", "learnt.toml"];
        let second = run(learn(&guest, &merge), "again");
        let wanted = "2 runs, the last one with 1 VM, which added nothing";
        assert!(second.contains(wanted), "{second}");
        let without_count =
            |text: &str| -> Vec<_> { text.lines().skip(1).map(str::to_owned).collect() };
        assert_eq!(without_count(&read("learnt.toml")), without_count(&text));
    }
}

/// Writes a boot sector that makes no access, and ends QEMU: cli; mov al, 0x10; out 0xf4, al.
fn write_quiet_sector(guest: &qemu::Guest) {
    let mut sector = vec![0xfa, 0xb0, 0x10, 0xe6, 0xf4];
    sector.resize(510, 0);
    sector.extend([0x55, 0xaa]);
    fs::write(guest.path("sector"), sector).unwrap();
}

/// The shipped policy `seabios` refuses no access of QEMU's firmware, and allows all that `learn` finds in a
/// run of the firmware.
#[test]
fn shipped_policy_seabios_refuses_no_access_of_qemu_firmware() {
    for guest in qemu::labs(DENIES_ALL) {
        write_quiet_sector(&guest);
        let policy = msrgate(&guest, &["policies", "seabios"]).out;
        fs::write(guest.path("guest.toml"), &policy).unwrap();
        let mut command = guest.exec(&[]);
        qemu::machine(command.arg(&guest.qemu), "stdio");
        let guarded = ran(&mut command);
        assert!(
            guarded.err.contains("and refused nothing"),
            "{}",
            guarded.err
        );
        // The least policy is within it, so that no entry is missing; those beyond it say so.
        let mut learning = learn(&guest, &["-o", "learnt.toml"]);
        qemu::machine(learning.arg(&guest.qemu), "stdio");
        assert!(ran(&mut learning).err.contains("which added"));
        let within = msrgate(
            &guest,
            &[
                "check",
                "--host",
                "none",
                "learnt.toml",
                "--within",
                "guest.toml",
            ],
        );
        assert_eq!(within.status, 0, "{}{}", within.out, within.err);
        // The entries beyond it are those that say so.
        let beyond = [
            "check",
            "--host",
            "none",
            "guest.toml",
            "--within",
            "learnt.toml",
        ];
        let beyond = msrgate(&guest, &beyond);
        let is_access = |line: &&str| line.starts_with("  read  ") || line.starts_with("  write ");
        let looser = beyond.out.lines().filter(is_access);
        let by_source = ["0x3a IA32_FEATURE_CONTROL:", "0x12 MSR_KVM_SYSTEM_TIME:"];
        for line in looser {
            assert!(
                by_source.iter().any(|one| line.contains(one)),
                "{}",
                beyond.out
            );
            let key = line
                .split([' ', ':'])
                .find(|word| word.contains('_'))
                .unwrap();
            let entry = policy.lines().find(|line| line.starts_with(key)).unwrap();
            assert!(entry.contains("why = \"by source: "), "{entry}");
        }
    }
}

/// A trace of the kernel's own, of one process and its threads.
struct Tracer(PathBuf);

impl Tracer {
    /// Makes an instance of tracefs. Returns `None`, and prints why, where there is no tracefs.
    fn new() -> Option<Self> {
        let number = std::process::id();
        let instances = Path::new("/sys/kernel/tracing/instances");
        let tracer = Self(instances.join(format!("msrgate-test-{number}")));
        if let Err(error) = fs::create_dir(&tracer.0) {
            let advice = "mount -t tracefs nodev /sys/kernel/tracing, as root";
            skip(
                "tracefs",
                &format!("tracefs makes no instance: {error}. Mount it: {advice}"),
            );
            return None;
        }
        fs::write(tracer.0.join("options/event-fork"), "1").unwrap();
        Some(tracer)
    }

    /// Returns the command that runs a program traced, to which the test adds the program's path and arguments. Before
    /// the instance has the process, its events are those of all processes.
    fn command(&self) -> Command {
        let script = "cd \"$0\" && echo $$ >set_event_pid && echo 1 >events/kvm/kvm_msr/enable && cd \"$OLDPWD\" && exec \"$@\"";
        let mut command = Command::new("sh");
        command.args(["-c", script]).arg(&self.0);
        command
    }

    fn trace(&self) -> String {
        fs::read_to_string(self.0.join("trace")).unwrap()
    }
}

impl Drop for Tracer {
    fn drop(&mut self) {
        fs::remove_dir(&self.0).unwrap();
    }
}

/// The firmware of a plain run makes the accesses that learning sees, and no others.
#[test]
fn learn_sees_same_accesses_of_firmware_as_kernels_trace_of_plain_run() {
    for guest in qemu::labs(DENIES_ALL) {
        let Some(kernel) = Tracer::new() else {
            return;
        };
        write_quiet_sector(&guest);
        let mut plain = kernel.command();
        qemu::machine(
            plain
                .arg(&guest.qemu)
                .current_dir(guest.path("").as_path())
                .stdin(Stdio::null()),
            "file:plain",
        );
        let plain = ran(&mut plain);
        assert_eq!(plain.status, qemu::DONE, "{}", plain.err);
        fs::write(guest.path("trace"), kernel.trace()).unwrap();
        let mut learning = learn(&guest, &["-o", "learnt.toml"]);
        qemu::machine(learning.arg(&guest.qemu), "file:guarded");
        let learning = ran(&mut learning);
        assert_eq!(learning.status, qemu::DONE, "{}", learning.err);
        let from = ["learn", "--from", "trace", "-o", "traced.toml"];
        let traced = msrgate(&guest, &from);
        assert_eq!(traced.status, 0, "{}", traced.err);
        let accesses = |name: &str| {
            let text = fs::read_to_string(guest.path(name)).unwrap();
            let text: toml::Table = text.parse().unwrap();
            let msrs = text["msrs"].as_table().unwrap().iter();
            let of = |(key, entry): (&String, &toml::Value)| {
                let action = |access| entry[access].as_str().unwrap().to_owned();
                (key.clone(), [action("read"), action("write")])
            };
            msrs.map(of).collect::<BTreeMap<_, _>>()
        };
        let (learnt, traced) = (accesses("learnt.toml"), accesses("traced.toml"));
        assert!(learnt.len() > 20, "{learnt:?}");
        assert_eq!(learnt, traced);
    }
}

const FIRMWARE: [&str; 7] = [
    "-accel",
    "kvm",
    "-display",
    "none",
    "-nodefaults",
    "-m",
    "16",
];

#[test]
fn learn_writes_policy_after_until_time_or_signal_ended_qemu() {
    for guest in qemu::labs(DENIES_ALL) {
        let read = |name: &str| fs::read_to_string(guest.path(name)).unwrap();
        let mut timed = learn(&guest, &["-o", "timed.toml", "--until", "4s"]);
        let timed = ran(timed.arg(&guest.qemu).args(FIRMWARE));
        assert_eq!(
            timed.status, 0,
            "QEMU ends with 0 after SIGTERM: {}",
            timed.err
        );
        assert!(read("timed.toml").contains("IA32_MTRR_DEF_TYPE"));

        let mut killed = learn(&guest, &["-o", "killed.toml"]);
        killed
            .arg(&guest.qemu)
            .args(["-pidfile", "pid"])
            .args(FIRMWARE);
        let killed = killed.stderr(Stdio::piped()).spawn().unwrap();
        thread::sleep(Duration::from_secs(4));
        kill("-KILL", read("pid").trim());
        let killed = Ran::from(killed.wait_with_output().unwrap());
        assert_eq!(killed.status, 128 + 9, "{}", killed.err);
        assert!(read("killed.toml").contains("IA32_MTRR_DEF_TYPE"));
        guest.assert_no_page_is_left();
    }
}

#[test]
fn learn_passes_signals_to_vmm_returns_its_status_and_ends_it_at_until_text() {
    let Some(lab) = Lab::with_kvm(DENIES_ALL) else {
        return;
    };
    let shell = |options: &[&str], script: &str| {
        let mut command = learn(&lab, options);
        command.arg("sh").args(["-c", script]);
        command
    };
    let none = ran(&mut shell(&["-o", "none.toml"], "exit 7"));
    assert_eq!(none.status, 7);
    assert!(none.err.contains("the VMM made no VM"), "{}", none.err);
    assert!(!lab.path("none.toml").exists());

    let empty = ran(&mut shell(&["-o", "none.toml"], "exit 0"));
    assert_eq!(empty.status, 125, "no VM was watched: {}", empty.err);

    let script = "trap 'echo got it; exit 5' TERM; echo ready; while :; do sleep 0.1; done";
    let text = ran(&mut shell(&["-o", "none.toml", "--until", "ready"], script));
    assert_eq!(
        (&*text.out, text.status),
        ("ready\ngot it\n", 5),
        "{}",
        text.err
    );

    let mut waiting = shell(
        &["-o", "none.toml"],
        "trap 'exit 6' TERM; touch there; while :; do sleep 0.1; done",
    );
    let waiting = waiting.stderr(Stdio::piped()).spawn().unwrap();
    while !lab.path("there").exists() {
        thread::sleep(Duration::from_millis(20));
    }
    let pid = waiting.id().to_string();
    kill("-TERM", &pid);
    let waited = Ran::from(waiting.wait_with_output().unwrap());
    assert_eq!(waited.status, 6, "{}", waited.err);
}

/// The VMM goes on in the background in a session of its own, as QEMU with `-daemonize` does. `learn` still
/// ends it at a signal, and when the time of `--until` is over.
#[test]
fn learn_ends_vmm_in_background_after_signal_and_after_until_time() {
    let Some(lab) = Lab::with_kvm(DENIES_ALL) else {
        return;
    };
    let daemon = "trap 'echo got it; exit 9' TERM; touch there; while :; do sleep 0.1; done";
    let script = format!("setsid sh -c \"{daemon}\" & exit 0");
    let command = |options: &[&str]| {
        let mut command = learn(&lab, options);
        command.arg("sh").args(["-c", &script]);
        command
    };
    let timed = ran(&mut command(&["-o", "none.toml", "--until", "1.5s"]));
    assert_eq!(
        (&*timed.out, timed.status),
        ("got it\n", 9),
        "{}",
        timed.err
    );

    fs::remove_file(lab.path("there")).unwrap();
    let mut signalled = command(&["-o", "none.toml"]);
    let signalled = signalled
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    while !lab.path("there").exists() {
        thread::sleep(Duration::from_millis(20));
    }
    thread::sleep(Duration::from_millis(500));
    kill("-TERM", &signalled.id().to_string());
    let ended = Ran::from(signalled.wait_with_output().unwrap());
    assert_eq!(
        (&*ended.out, ended.status),
        ("got it\n", 9),
        "{}",
        ended.err
    );
}

#[test]
fn learn_that_is_killed_writes_no_policy_file() {
    let Some(lab) = Lab::with_kvm(DENIES_ALL) else {
        return;
    };
    let mut waiting = learn(&lab, &["-o", "none.toml"]);
    waiting.arg("sh").args(["-c", "touch there; sleep 2"]);
    let mut waiting = waiting.stderr(Stdio::null()).spawn().unwrap();
    while !lab.path("there").exists() {
        thread::sleep(Duration::from_millis(20));
    }
    waiting.kill().unwrap();
    waiting.wait().unwrap();
    assert!(!lab.path("none.toml").exists());
}

#[test]
fn learn_fails_if_output_file_exists_or_vmm_does_not_exist() {
    let Some(lab) = Lab::with_kvm(DENIES_ALL) else {
        return;
    };
    let there = ran(learn(&lab, &["-o", "guest.toml"]).arg("true"));
    assert_eq!(there.status, 125);
    assert!(
        there.err.contains("--merge guest.toml -o guest.toml"),
        "{}",
        there.err
    );
    let missing = ran(learn(&lab, &["-o", "new.toml"]).arg("./missing"));
    assert_eq!(missing.status, 127, "{}", missing.err);
    assert!(!lab.path("new.toml").exists());
}

/// The VMM, or a guest that controls it, has overwritten the state page. `learn` then says that the VMM has
/// damaged the page, and writes no policy.
#[test]
fn learn_writes_no_policy_and_says_why_if_vmm_damaged_state_page() {
    for size in ["0", "4096"] {
        let Some(lab) = Lab::with_kvm(DENIES_ALL) else {
            return;
        };
        let strict = lab.build("strict.c", &[]);
        let script = format!("$0; truncate -s {size} $MSRGATE_STATE");
        let mut command = learn(&lab, &["-o", "learnt.toml"]);
        let ran = ran(command.args(["sh", "-c", &script]).arg(strict));
        assert_eq!((&*ran.out, ran.status), (".\n", 125), "{}", ran.err);
        let said = "error: the VMM has damaged the run's state page: it";
        let end = "; what the run showed is lost, and no policy was written\n";
        assert!(
            ran.err.starts_with(said) && ran.err.ends_with(end),
            "{}",
            ran.err
        );
        assert!(!lab.path("learnt.toml").exists());
    }
}

/// The first write of EFER was let through by the filter, and refused by KVM.
#[test]
fn access_that_kvm_refuses_for_its_value_is_marked_and_allowed() {
    let Some(lab) = Lab::with_kvm(DENIES_ALL) else {
        return;
    };
    let vmm = lab.build("answers.c", &[]);
    let plain = ran(Command::new(&vmm).arg("invalid"));
    let learning = ran(learn(&lab, &["-o", "learnt.toml"]).arg(&vmm).arg("invalid"));
    assert_eq!((&*plain.out, plain.status), ("0!\n", 0), "{}", plain.err);
    assert_eq!(
        (&*learning.out, learning.status),
        ("0!\n", 0),
        "{}",
        learning.err
    );
    let text = fs::read_to_string(lab.path("learnt.toml")).unwrap();
    assert!(text.contains("IA32_EFER"), "{text}");
    assert!(text.contains("; KVM refused a write with #GP\""), "{text}");
    assert!(
        text.contains("# KVM knows these MSRs, and refused"),
        "{text}"
    );
    fs::copy(lab.path("learnt.toml"), lab.path("guest.toml")).unwrap();
    let guarded = ran(lab.exec(&[]).arg(&vmm).arg("invalid"));
    assert_eq!(guarded.out, plain.out);
    assert!(guarded.err.contains("refused nothing"), "{}", guarded.err);
}

/// A run in which no VM was watched shows nothing.
#[test]
fn vmm_that_goes_past_the_library_gets_no_vm_and_learn_exits_with_125() {
    let Some(lab) = Lab::with_kvm(DENIES_ALL) else {
        return;
    };
    let past = lab.build("past.c", &[]);
    let ran = ran(learn(&lab, &["-o", "learnt.toml"]).arg(past).arg("only"));
    assert!(ran.out.contains("syscall: -1\n"), "{}", ran.out);
    assert_eq!(ran.status, 125, "{}", ran.err);
    for said in [
        "asked KVM for a VM past msrgate's library",
        "the VMM made no VM",
    ] {
        assert!(ran.err.contains(said), "{}", ran.err);
    }
    assert!(!lab.path("learnt.toml").exists());
}

/// The policy of `--merge` was made invalid during the run. `learn` then prints the learnt policy to
/// standard error, because the run may have taken hours.
#[test]
fn learn_prints_learnt_policy_if_policy_to_merge_is_invalid_after_run() {
    let Some(lab) = Lab::with_kvm(DENIES_ALL) else {
        return;
    };
    let strict = lab.build("strict.c", &[]);
    let mut command = learn(&lab, &["--merge", "guest.toml", "-o", "guest.toml"]);
    command.args(["sh", "-c", "$0; echo broken >guest.toml"]);
    let ran = ran(command.arg(strict));
    assert_eq!(ran.status, 125, "{}", ran.err);
    for part in [
        "shown here instead",
        "# Learnt by msrgate from 1 run.",
        "learnt: first ",
    ] {
        assert!(ran.err.contains(part), "{part}: {}", ran.err);
    }
    assert_eq!(
        fs::read_to_string(lab.path("guest.toml")).unwrap(),
        "broken\n"
    );
}
