//! Tests of QEMU with a boot sector that reads MSR 0x8b eight times, and then 0x35, which QEMU answers by
//! its own filter.

use std::fs;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::Duration;

use crate::lab::{ALLOWS, ANSWERS, DENIES, KILLS, LOGS, Lab, Ran, ran, skip};

const QEMU: &str = "qemu-system-x86_64";

/// The boot sector. For each read of 0x8b it writes `.` to port 0xe9, or `!` after a #GP; for the read of
/// 0x35 it writes `Q`, `!` after a #GP, or `0` for the value 0. At last the boot sector ends QEMU with
/// status 33 by port 0xf4.
const SECTOR: &[u8] = &[
    0xfa, 0x31, 0xc0, // cli; xor ax, ax
    0x8e, 0xd8, 0x8e, 0xd0, // mov ds, ax; mov ss, ax
    0xbc, 0x00, 0x70, // mov sp, 0x7000
    0xc7, 0x06, 0x34, 0x00, 0x4c, 0x7c, // mov word [13 * 4], handler
    0xc7, 0x06, 0x36, 0x00, 0x00, 0x00, // mov word [13 * 4 + 2], 0
    0x66, 0xb9, 0x8b, 0x00, 0x00, 0x00, // mov ecx, 0x8b
    0x66, 0xbe, 0x08, 0x00, 0x00, 0x00, // mov esi, 8
    0xb3, b'.', // again: mov bl, '.'
    0x0f, 0x32, // rdmsr
    0x88, 0xd8, 0xe6, 0xe9, // mov al, bl; out 0xe9, al
    0x66, 0x4e, 0x75, 0xf4, // dec esi; jnz again
    0xb3, b'Q', // mov bl, 'Q'
    0x66, 0xb9, 0x35, 0x00, 0x00, 0x00, // mov ecx, 0x35
    0x0f, 0x32, // rdmsr
    0x66, 0x85, 0xc0, 0x75, 0x02, // test eax, eax; jnz +2
    0xb3, b'0', // mov bl, '0'
    0x88, 0xd8, 0xe6, 0xe9, // mov al, bl; out 0xe9, al
    0xb0, b'\n', 0xe6, 0xe9, // mov al, '\n'; out 0xe9, al
    0xb0, 0x10, 0xe6, 0xf4, 0xf4, // mov al, 0x10; out 0xf4, al; hlt
    0xb3, b'!', // handler: mov bl, '!'
    0x55, 0x89, 0xe5, // push bp; mov bp, sp
    0x83, 0x46, 0x02, 0x02, // add word [bp + 2], 2: past the instruction
    0x5d, 0xcf, // pop bp; iret
];

/// QEMU's exit status after the guest has written 0x10 to port 0xf4.
pub(crate) const DONE: i32 = 33;

/// A lab for one version of QEMU that this machine has.
pub(crate) struct Guest {
    lab: Lab,
    pub(crate) qemu: PathBuf,
}

impl Deref for Guest {
    type Target = Lab;

    fn deref(&self) -> &Lab {
        &self.lab
    }
}

/// Makes labs with this policy: one for the installed QEMU, and one for QEMU 10 if `scripts/qemu10` has
/// fetched it. Prints which of them is missing. Returns no lab if the host has no KVM.
pub(crate) fn labs(policy: &str) -> Vec<Guest> {
    let command = Path::new(env!("CARGO_BIN_EXE_msrgate"));
    let target = command.ancestors().nth(2).unwrap();
    let ten = target.join("qemu10/root/usr/bin/qemu-system-x86_64");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../scripts/qemu10");
    let own = Command::new(QEMU).arg("-version").output().is_ok();
    let mut found = Vec::new();
    for (word, is_there, program, advice) in [
        (
            "qemu",
            own,
            QEMU.into(),
            "Install it, for instance Debian's qemu-system-x86",
        ),
        ("qemu10", ten.exists(), script, "Fetch it by scripts/qemu10"),
    ] {
        if is_there {
            found.push(program);
            continue;
        }
        skip(word, &format!("there is no {word}. {advice}"));
    }
    let guests = found.into_iter().filter_map(|qemu: PathBuf| {
        let lab = Lab::with_kvm(policy)?;
        let mut sector = SECTOR.to_vec();
        sector.resize(510, 0);
        sector.extend([0x55, 0xaa]);
        fs::write(lab.path("sector"), sector).unwrap();
        Some(Guest { lab, qemu })
    });
    guests.collect()
}

/// Adds QEMU's arguments for a machine that boots [`SECTOR`] with KVM.
pub(crate) fn machine(command: &mut Command, console: &str) {
    hardware(command.args(["-accel", "kvm"]), console);
}

/// Adds QEMU's arguments for a machine that boots [`SECTOR`], without the choice of the accelerator.
pub(crate) fn hardware(command: &mut Command, console: &str) {
    command.args(["-display", "none", "-nodefaults", "-no-reboot", "-m", "16"]);
    command.args(["-drive", "file=sector,format=raw", "-debugcon", console]);
    command.args(["-device", "isa-debug-exit,iobase=0xf4,iosize=4"]);
}

fn boot(guest: &Guest, options: &[&str], more: &[&str]) -> Ran {
    let mut command = guest.exec(options);
    machine(command.arg(&guest.qemu), "stdio");
    ran(command.args(more))
}

#[test]
fn policy_that_allows_all_changes_no_output_and_no_status_of_qemu() {
    for lab in labs(ALLOWS) {
        let mut plain = Command::new(&lab.qemu);
        machine(plain.current_dir(lab.folder.path()), "stdio");
        let (plain, guarded) = (ran(&mut plain), boot(&lab, &["--quiet"], &[]));
        assert_eq!(
            (guarded.out, guarded.err, guarded.status),
            (plain.out.clone(), plain.err, DONE)
        );
        assert_eq!((&*plain.out, plain.status), ("........Q\n", DONE));
        lab.assert_no_page_is_left();
    }
}

#[test]
fn denied_read_is_gp_fault_in_qemu_guest_and_summary_says_how_to_allow_it() {
    for lab in labs(DENIES) {
        let ran = boot(&lab, &[], &[]);
        assert_eq!((&*ran.out, ran.status), ("!!!!!!!!Q\n", DONE));
        let said = "msrgate: guest.toml guarded 1 VM, and refused 8 accesses\n  8 reads of 0x8b IA32_BIOS_SIGN_ID by guest.toml:4, first by vCPU 0 after ";
        assert!(ran.err.contains(said), "{}", ran.err);
        assert!(
            ran.err.contains("; to allow, in line 4: 0x8b = \"rw\"\n"),
            "{}",
            ran.err
        );
        let allowing = "policy = 1\ndefault = 'allow'\n[msrs]\n0x8b = \"rw\"\n";
        fs::write(lab.folder.path().join("guest.toml"), allowing).unwrap();
        assert_eq!(&*boot(&lab, &[], &[]).out, "........Q\n");
    }
}

#[test]
fn summary_counts_read_that_policy_answers_as_answered_not_refused() {
    for lab in labs(ANSWERS) {
        let ran = boot(&lab, &[], &[]);
        assert_eq!((&*ran.out, ran.status), ("........Q\n", DONE));
        assert!(
            ran.err.contains("refused nothing; it answered 8 itself\n"),
            "{}",
            ran.err
        );
    }
}

#[test]
fn action_kill_ends_qemu_by_sigkill_with_message_that_says_why() {
    for lab in labs(KILLS) {
        let ran = boot(&lab, &[], &[]);
        assert_eq!((&*ran.out, ran.status), ("", 128 + 9));
        assert!(
            ran.err
                .contains("the policy has the action kill for the read of MSR 0x8b"),
            "{}",
            ran.err
        );
        assert!(
            ran.err
                .contains("refused 1 access\n  `kill` has ended a VMM;")
                && ran
                    .err
                    .contains("\n  1 read of 0x8b IA32_BIOS_SIGN_ID by guest.toml:4 (kill), first"),
            "{}",
            ran.err
        );
        lab.assert_no_page_is_left();
    }
}

/// QEMU's firmware accesses MSRs before the sector does.
#[test]
fn default_kill_ends_qemu_at_first_access_of_firmware() {
    for lab in labs("policy = 1\ndefault = 'kill'\n") {
        let ran = boot(&lab, &[], &[]);
        assert_eq!((&*ran.out, ran.status), ("", 128 + 9), "{}", ran.err);
        let said = ran.err.contains("the policy has the action kill for the ");
        assert!(
            said && ran.err.contains("refused 1 access\n"),
            "{}",
            ran.err
        );
        let by = ran
            .err
            .contains(" by the default of guest.toml (kill), first by vCPU 0");
        assert!(by && ran.err.contains("; to allow: "), "{}", ran.err);
        lab.assert_no_page_is_left();
    }
}

#[test]
fn audit_mode_refuses_no_access_of_qemu_guest_and_writes_event_of_denied_read() {
    for policy in [DENIES, KILLS] {
        for lab in labs(policy) {
            let ran = boot(&lab, &["--audit", "--events", "events"], &[]);
            assert_eq!(
                (&*ran.out, ran.status),
                ("........Q\n", DONE),
                "{}",
                ran.err
            );
            assert!(
                ran.err.contains("would have refused at least 1 access\n"),
                "{}",
                ran.err
            );
            let events = lab.events("events");
            assert_eq!(events.lines().count(), 1, "{events}");
            assert!(
                events.contains("\"action\":\"would-") && events.contains("\"msr\":\"0x8b\""),
                "{events}"
            );
        }
    }
}

#[test]
fn events_file_has_an_event_for_each_refused_read_of_qemu_guest() {
    for lab in labs(DENIES) {
        boot(&lab, &["--events", "events", "--quiet"], &[]);
        lab.assert_no_page_is_left();
        let events = lab.events("events");
        let is_one = |line: &&str| {
            let event: serde_json::Value = serde_json::from_str(line).unwrap();
            event["action"] == "deny" && event["line"] == 4 && event["policy"] == "guest.toml"
        };
        assert_eq!(events.lines().filter(is_one).count(), 8, "{events}");
    }
}

#[test]
fn read_that_policy_allows_and_logs_succeeds_in_qemu_guest() {
    for lab in labs(LOGS) {
        let ran = boot(&lab, &[], &[]);
        assert_eq!(
            (&*ran.out, ran.status),
            ("........Q\n", DONE),
            "{}",
            ran.err
        );
    }
}

/// QEMU's own filter asks for exits of MSR 0x35. If the policy denies the MSR, QEMU gets no exit, and the
/// guest gets #GP.
#[test]
fn msr_that_policy_denies_is_gp_fault_although_filter_of_qemu_asks_for_exit() {
    let denies =
        "policy = 1\ndefault = 'allow'\n[msrs]\n0x35 = { read = 'deny', write = 'allow' }\n";
    for lab in labs(denies) {
        let ran = boot(&lab, &[], &[]);
        assert_eq!(
            (&*ran.out, ran.status),
            ("........!\n", DONE),
            "{}",
            ran.err
        );
    }
}

#[test]
fn policy_is_in_force_in_qemu_with_two_processors_and_seccomp_sandbox() {
    for lab in labs(DENIES) {
        let sandbox = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny";
        let ran = boot(&lab, &[], &["-smp", "2", "-sandbox", sandbox]);
        assert_eq!(
            (&*ran.out, ran.status),
            ("!!!!!!!!Q\n", DONE),
            "{}",
            ran.err
        );
    }
}

#[test]
fn qemu_that_makes_no_vm_has_same_output_and_status_as_without_exec() {
    for lab in labs(DENIES) {
        let plain = ran(Command::new(&lab.qemu).arg("-version"));
        let guarded = ran(lab.exec(&[]).arg(&lab.qemu).arg("-version"));
        assert_eq!(
            (guarded.out, guarded.err, guarded.status),
            (plain.out, plain.err, plain.status)
        );
        lab.assert_no_page_is_left();
    }
}

/// QEMU with `-accel tcg` makes no VM with KVM. Its output and exit status are the same as without `exec`.
#[test]
fn qemu_guest_under_tcg_has_same_output_and_status_as_without_exec() {
    for lab in labs(DENIES) {
        let mut plain = Command::new(&lab.qemu);
        hardware(
            plain.current_dir(lab.path("")).args(["-accel", "tcg"]),
            "stdio",
        );
        let mut guarded = lab.exec(&["--summary", "summary"]);
        hardware(guarded.arg(&lab.qemu).args(["-accel", "tcg"]), "stdio");
        let (plain, guarded) = (ran(&mut plain), ran(&mut guarded));
        assert_eq!(
            (guarded.out, guarded.err, guarded.status),
            (plain.out, plain.err, plain.status)
        );
        assert_eq!(guarded.status, DONE);
        lab.assert_no_page_is_left();
        assert_eq!(
            fs::read_to_string(lab.path("summary")).unwrap(),
            "msrgate: guest.toml guarded no VM: no program of the run has got one of KVM\n"
        );
    }
}

#[test]
fn qemu_daemon_is_guarded_and_exec_returns_when_daemon_has_started() {
    for lab in labs(DENIES) {
        let mut command = lab.exec(&["--events", "events"]);
        machine(command.arg(&lab.qemu), "file:console");
        // The starter returns when standard error is closed, which is before the guest is done.
        let started = ran(command.arg("-daemonize"));
        assert_eq!(started.status, 0, "{}", started.err);
        let said = [
            "msrgate: guest.toml guarded 1 VM so far, and refused ",
            "  the run goes on in the background; to have the summary of its end, name a file by --summary\n",
        ];
        assert!(
            said.iter().all(|said| started.err.contains(said)),
            "{}",
            started.err
        );
        let mut console = String::new();
        for _ in 0..600 {
            console = fs::read_to_string(lab.path("console")).unwrap_or_default();
            if console.ends_with('\n') {
                break;
            }
            thread::sleep(Duration::from_millis(50));
        }
        assert_eq!(console, "!!!!!!!!Q\n");
        lab.assert_no_page_is_left();
        let events = lab.events("events");
        assert_eq!(events.matches("\"msr\":\"0x8b\"").count(), 8, "{events}");
    }
}

/// libvirt finds out QEMU's capabilities by a QEMU daemon that makes a VM without vCPUs. The daemon's
/// answers are the same under `exec`.
#[test]
fn qemu_daemon_answers_capability_probe_of_libvirt_under_exec() {
    use std::io::{BufRead as _, BufReader, Write as _};
    use std::os::unix::net::UnixStream;
    for lab in labs(DENIES) {
        let mut command = lab.exec(&["--summary", "summary"]);
        command.arg(&lab.qemu).args([
            "-S",
            "-no-user-config",
            "-nodefaults",
            "-nographic",
            "-daemonize",
        ]);
        command.args([
            "-machine",
            "none,accel=kvm:tcg",
            "-qmp",
            "unix:qmp,server=on,wait=off",
            "-pidfile",
            "pid",
        ]);
        let started = ran(&mut command);
        assert_eq!(started.status, 0, "{}", started.err);
        let socket = UnixStream::connect(lab.path("qmp")).unwrap();
        let mut lines = BufReader::new(socket.try_clone().unwrap()).lines();
        let mut ask = |command: &str| {
            writeln!(&socket, "{{\"execute\":\"{command}\"}}").unwrap();
            lines
                .find_map(|line| line.ok().filter(|line| line.contains("return")))
                .unwrap()
        };
        ask("qmp_capabilities");
        let answer = ask("query-kvm");
        assert!(answer.contains("\"enabled\": true"), "{answer}");
        let pid = fs::read_to_string(lab.path("pid")).unwrap();
        let maps = fs::read_to_string(format!("/proc/{}/maps", pid.trim())).unwrap();
        assert!(maps.contains("libmsrgate_preload.so"), "{maps}");
        ask("quit");
        lab.assert_no_page_is_left();
        let summary = fs::read_to_string(lab.path("summary")).unwrap();
        let wanted = "msrgate: guest.toml guarded 1 VM, and refused nothing\n";
        assert_eq!(summary, wanted);
    }
}

/// The summary in audit mode lists every kind of access that the policy would refuse, although QEMU's
/// firmware makes more than 20 kinds, the limit in other modes.
#[test]
fn summary_in_audit_mode_lists_more_than_20_kinds_of_accesses() {
    for guest in labs("policy = 1\ndefault = 'deny'\n") {
        let mut command = guest.exec(&["--audit"]);
        machine(command.arg(&guest.qemu), "file:console");
        let ran = ran(&mut command);
        assert_eq!(ran.status, DONE, "{}", ran.err);
        let listed = ran.err.lines().filter(|line| line.starts_with("  1 "));
        let count = listed.count();
        let wanted = format!("would have refused at least {count} accesses\n");
        assert!(count > 20 && ran.err.contains(&wanted), "{}", ran.err);
    }
}
