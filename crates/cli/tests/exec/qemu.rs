//! Tests of QEMU with a boot sector that reads MSR 0x8b eight times, and then 0x35, which QEMU answers by
//! its own filter.

use std::fs;
use std::process::Command;
use std::thread;
use std::time::Duration;

use msrgate_testing::host;

use crate::lab::{ALLOWS, ANSWERS, DENIES, KILLS, LOGS, Lab, Ran, ran};

const QEMU: &str = "qemu-system-x86_64";

/// The boot sector. For each read of 0x8b it writes `.` to port 0xe9, or `!` after a #GP; for the read of
/// 0x35 it writes `Q`, `!` after a #GP, or `0` for the value 0. Then it ends QEMU with status 33 by port
/// 0xf4.
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
const DONE: i32 = 33;

/// Makes a lab with this policy, for QEMU. Returns `None`, and prints why, without QEMU or KVM.
fn lab(policy: &str) -> Option<Lab> {
    let found = Command::new(QEMU).arg("-version").output();
    if found.is_err() {
        let required = std::env::var("MSRGATE_REQUIRE").unwrap_or_default();
        assert!(
            !required.split(',').any(|word| word == "qemu"),
            "MSRGATE_REQUIRE=qemu, but there is no {QEMU}"
        );
        host::say(&format!(
            "SKIPPED: there is no {QEMU}. Install it, for instance Debian's qemu-system-x86"
        ));
        return None;
    }
    let lab = Lab::with_kvm(policy)?;
    let mut sector = SECTOR.to_vec();
    sector.resize(510, 0);
    sector.extend([0x55, 0xaa]);
    fs::write(lab.path("sector"), sector).unwrap();
    Some(lab)
}

/// Adds the arguments of a machine that boots the sector.
fn machine(command: &mut Command, console: &str) {
    command.args([
        "-accel",
        "kvm",
        "-display",
        "none",
        "-nodefaults",
        "-no-reboot",
        "-m",
        "16",
    ]);
    command.args(["-drive", "file=sector,format=raw", "-debugcon", console]);
    command.args(["-device", "isa-debug-exit,iobase=0xf4,iosize=4"]);
}

fn boot(lab: &Lab, options: &[&str], more: &[&str]) -> Ran {
    let mut command = lab.exec(options);
    machine(command.arg(QEMU), "stdio");
    ran(command.args(more))
}

#[test]
fn allowing_policy_changes_nothing_that_qemu_shows() {
    let Some(lab) = lab(ALLOWS) else { return };
    let mut plain = Command::new(QEMU);
    machine(plain.current_dir(lab.folder.path()), "stdio");
    let (plain, guarded) = (ran(&mut plain), boot(&lab, &["--quiet"], &[]));
    assert_eq!(
        (guarded.out, guarded.err, guarded.status),
        (plain.out.clone(), plain.err, DONE)
    );
    assert_eq!((&*plain.out, plain.status), ("........Q\n", DONE));
    lab.assert_no_page_is_left();
}

#[test]
fn denied_read_is_a_fault_and_the_summary_says_how_to_allow_it() {
    let Some(lab) = lab(DENIES) else { return };
    let ran = boot(&lab, &[], &[]);
    assert_eq!((&*ran.out, ran.status), ("!!!!!!!!Q\n", DONE));
    let said = "msrgate: guest.toml guarded 1 VM, and refused 8 accesses\n  8 reads of 0x8b IA32_BIOS_SIGN_ID by guest.toml:4, first by vCPU 0 after ";
    assert!(ran.err.contains(said), "{}", ran.err);
    assert!(
        ran.err.contains("; to allow: IA32_BIOS_SIGN_ID = \"rw\"\n"),
        "{}",
        ran.err
    );
}

#[test]
fn answered_read_is_not_counted_as_refusal() {
    let Some(lab) = lab(ANSWERS) else { return };
    let ran = boot(&lab, &[], &[]);
    assert_eq!((&*ran.out, ran.status), ("........Q\n", DONE));
    assert!(
        ran.err.contains("refused nothing; it answered 8 itself\n"),
        "{}",
        ran.err
    );
}

#[test]
fn killed_vmm_ends_by_sigkill_and_says_why() {
    let Some(lab) = lab(KILLS) else { return };
    let ran = boot(&lab, &[], &[]);
    assert_eq!((&*ran.out, ran.status), ("", 128 + 9));
    assert!(
        ran.err
            .contains("the policy has the action kill for the read of MSR 0x8b"),
        "{}",
        ran.err
    );
    assert!(
        ran.err.contains("refused 1 access\n  1 read of 0x8b"),
        "{}",
        ran.err
    );
    lab.assert_no_page_is_left();
}

#[test]
fn audit_refuses_nothing_and_records() {
    for policy in [DENIES, KILLS] {
        let Some(lab) = lab(policy) else { return };
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
        let events = fs::read_to_string(lab.path("events")).unwrap();
        assert_eq!(events.lines().count(), 1, "{events}");
        assert!(
            events.contains("\"action\":\"would-") && events.contains("\"msr\":\"0x8b\""),
            "{events}"
        );
    }
}

#[test]
fn events_have_each_refusal() {
    let Some(lab) = lab(DENIES) else { return };
    boot(&lab, &["--events", "events", "--quiet"], &[]);
    lab.assert_no_page_is_left();
    let events = fs::read_to_string(lab.path("events")).unwrap();
    let is_one = |line: &&str| {
        let event: serde_json::Value = serde_json::from_str(line).unwrap();
        event["action"] == "deny" && event["line"] == 4 && event["policy"] == "guest.toml"
    };
    assert_eq!(events.lines().filter(is_one).count(), 8, "{events}");
}

#[test]
fn logged_access_is_let_through() {
    let Some(lab) = lab(LOGS) else { return };
    let ran = boot(&lab, &[], &[]);
    assert_eq!(
        (&*ran.out, ran.status),
        ("........Q\n", DONE),
        "{}",
        ran.err
    );
}

/// QEMU has its own filter for 0x35. If the policy denies the access, QEMU gets no exit.
#[test]
fn qemus_own_filter_answers_only_what_the_policy_allows() {
    let denies =
        "policy = 1\ndefault = 'allow'\n[msrs]\n0x35 = { read = 'deny', write = 'allow' }\n";
    let Some(lab) = lab(denies) else { return };
    let ran = boot(&lab, &[], &[]);
    assert_eq!(
        (&*ran.out, ran.status),
        ("........!\n", DONE),
        "{}",
        ran.err
    );
}

#[test]
fn second_processor_and_sandbox_are_guarded_too() {
    let Some(lab) = lab(DENIES) else { return };
    let sandbox = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny";
    let ran = boot(&lab, &[], &["-smp", "2", "-sandbox", sandbox]);
    assert_eq!(
        (&*ran.out, ran.status),
        ("!!!!!!!!Q\n", DONE),
        "{}",
        ran.err
    );
}

#[test]
fn program_without_a_vm_ends_as_it_would() {
    let Some(lab) = lab(DENIES) else { return };
    let plain = ran(Command::new(QEMU).arg("-version"));
    let guarded = ran(lab.exec(&[]).args([QEMU, "-version"]));
    assert_eq!(
        (guarded.out, guarded.err, guarded.status),
        (plain.out, plain.err, plain.status)
    );
    lab.assert_no_page_is_left();
}

#[test]
fn daemon_is_guarded_and_its_starter_goes_on() {
    let Some(lab) = lab(DENIES) else { return };
    let mut command = lab.exec(&[]);
    machine(command.arg(QEMU), "file:console");
    // The starter returns when standard error is closed, which is before the guest is done.
    let started = ran(command.arg("-daemonize"));
    assert_eq!(started.status, 0, "{}", started.err);
    assert!(!started.err.contains("guarded"), "{}", started.err);
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
}

/// To learn QEMU's capabilities, libvirt starts a daemon that makes a VM without processors.
#[test]
fn libvirt_capability_probe_is_answered() {
    use std::io::{BufRead as _, BufReader, Write as _};
    use std::os::unix::net::UnixStream;
    let Some(lab) = lab(DENIES) else { return };
    let mut command = lab.exec(&[]);
    command.args([
        QEMU,
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
    ask("quit");
    lab.assert_no_page_is_left();
}
