//! Tests of QEMU with two processors, with resets of the machine, and with accelerator options that only
//! newer versions of QEMU have.

use std::fs;
use std::io::Write as _;
use std::os::fd::AsRawFd as _;
use std::process::Command;

use crate::lab::{DENIES, Ran, library, ran, skip};
use crate::qemu::{DONE, Guest, hardware, labs, machine};

/// The boot sector for two processors. The first processor starts the second by the x2APIC and waits for it.
/// Each processor writes its number to port 0xe9, reads MSR 0x8b, and writes `.`, or `!` after a #GP.
const TWO: &[u8] = &[
    0xfa, 0x31, 0xc0, // cli; xor ax, ax
    0x8e, 0xd8, 0x8e, 0xd0, // mov ds, ax; mov ss, ax
    0xbc, 0x00, 0x70, // mov sp, 0x7000
    0xc7, 0x06, 0x34, 0x00, 0x92, 0x7c, // mov word [13 * 4], handler
    0xc7, 0x06, 0x36, 0x00, 0x00, 0x00, // mov word [13 * 4 + 2], 0
    0xc6, 0x06, 0x00, 0x70, 0xea, // mov byte [0x7000], 0xea: jmp 0:second
    0xc7, 0x06, 0x01, 0x70, 0x6b, 0x7c, // mov word [0x7001], second
    0xc7, 0x06, 0x03, 0x70, 0x00, 0x00, // mov word [0x7003], 0
    0xc6, 0x06, 0x00, 0x06, 0x00, // mov byte [0x600], 0
    0x66, 0xb9, 0x1b, 0x00, 0x00, 0x00, // mov ecx, 0x1b
    0x0f, 0x32, 0x0d, 0x00, 0x0c, 0x0f, 0x30, // rdmsr; or ax, 0xc00; wrmsr: x2APIC
    0x66, 0xb9, 0x30, 0x08, 0x00, 0x00, // mov ecx, 0x830: the ICR
    0x66, 0x31, 0xd2, // xor edx, edx
    0x66, 0xb8, 0x00, 0x45, 0x0c, 0x00, 0x0f,
    0x30, // mov eax, 0xc4500; wrmsr: INIT to all others
    0x66, 0xb8, 0x07, 0x46, 0x0c, 0x00, 0x0f,
    0x30, // mov eax, 0xc4607; wrmsr: begin at 0x7000
    0xf3, 0x90, // wait: pause
    0x80, 0x3e, 0x00, 0x06, 0x01, 0x75, 0xf7, // cmp byte [0x600], 1; jne wait
    0xb0, b'1', 0xe6, 0xe9, // mov al, '1'; out 0xe9, al
    0xe8, 0x21, 0x00, // call read
    0xb0, b'\n', 0xe6, 0xe9, // mov al, '\n'; out 0xe9, al
    0xb0, 0x10, 0xe6, 0xf4, 0xf4, // mov al, 0x10; out 0xf4, al; hlt
    0x31, 0xc0, 0x8e, 0xd8, 0x8e, 0xd0, // second: xor ax, ax; mov ds, ax; mov ss, ax
    0xbc, 0x00, 0x60, // mov sp, 0x6000
    0xb0, b'2', 0xe6, 0xe9, // mov al, '2'; out 0xe9, al
    0xe8, 0x08, 0x00, // call read
    0xc6, 0x06, 0x00, 0x06, 0x01, // mov byte [0x600], 1
    0xf4, 0xeb, 0xfd, // stop: hlt; jmp stop
    0xb3, b'.', // read: mov bl, '.'
    0x66, 0xb9, 0x8b, 0x00, 0x00, 0x00, 0x0f, 0x32, // mov ecx, 0x8b; rdmsr
    0x88, 0xd8, 0xe6, 0xe9, 0xc3, // mov al, bl; out 0xe9, al; ret
    0xb3, b'!', // handler: mov bl, '!'
    0x55, 0x89, 0xe5, // push bp; mov bp, sp
    0x83, 0x46, 0x02, 0x02, // add word [bp + 2], 2: past the instruction
    0x5d, 0xcf, // pop bp; iret
];

/// The boot sector that reads MSR 0x8b once, writes `.`, or `!` after a #GP, and a line feed, and resets the
/// machine twice. The boot sector counts the resets in the CMOS memory, which a reset does not clear.
const RESETS: &[u8] = &[
    0xfa, 0x31, 0xc0, // cli; xor ax, ax
    0x8e, 0xd8, 0x8e, 0xd0, // mov ds, ax; mov ss, ax
    0xbc, 0x00, 0x70, // mov sp, 0x7000
    0xc7, 0x06, 0x34, 0x00, 0x3f, 0x7c, // mov word [13 * 4], handler
    0xc7, 0x06, 0x36, 0x00, 0x00, 0x00, // mov word [13 * 4 + 2], 0
    0xb3, b'.', // mov bl, '.'
    0x66, 0xb9, 0x8b, 0x00, 0x00, 0x00, 0x0f, 0x32, // mov ecx, 0x8b; rdmsr
    0x88, 0xd8, 0xe6, 0xe9, // mov al, bl; out 0xe9, al
    0xb0, b'\n', 0xe6, 0xe9, // mov al, '\n'; out 0xe9, al
    0xb0, 0x44, 0xe6, 0x70, // mov al, 0x44; out 0x70, al
    0xe4, 0x71, 0x40, 0xe6, 0x71, // in al, 0x71; inc ax; out 0x71, al
    0x3c, 0x03, 0x73, 0x05, // cmp al, 3; jae done
    0xb0, 0xfe, 0xe6, 0x64, 0xf4, // mov al, 0xfe; out 0x64, al; hlt
    0xb0, 0x10, 0xe6, 0xf4, 0xf4, // done: mov al, 0x10; out 0xf4, al; hlt
    0xb3, b'!', // handler: mov bl, '!'
    0x55, 0x89, 0xe5, // push bp; mov bp, sp
    0x83, 0x46, 0x02, 0x02, // add word [bp + 2], 2: past the instruction
    0x5d, 0xcf, // pop bp; iret
];

/// Replaces the boot sector of a guest.
fn write_sector(guest: &Guest, code: &[u8]) {
    let mut sector = code.to_vec();
    sector.resize(510, 0);
    sector.extend([0x55, 0xaa]);
    fs::write(guest.path("sector"), sector).unwrap();
}

/// Runs QEMU without `exec` and then with it, and returns both results. QEMU uses a second `-accel` only if
/// the first one fails.
fn both(guest: &Guest, options: &[&str], accelerator: &str, more: &[&str]) -> [Ran; 2] {
    let plain = Command::new(&guest.qemu);
    let mut guarded = guest.exec(options);
    guarded.arg(&guest.qemu);
    [plain, guarded].map(|mut command| {
        command.current_dir(guest.path(""));
        hardware(command.args(["-accel", accelerator]), "stdio");
        ran(command.args(more))
    })
}

#[test]
fn policy_refuses_read_by_second_vcpu_of_qemu_machine() {
    for guest in labs(DENIES) {
        write_sector(&guest, TWO);
        let options = ["--quiet", "--events", "events"];
        let [plain, guarded] = both(&guest, &options, "kvm", &["-smp", "2"]);
        assert_eq!((&*plain.out, plain.status), ("2.1.\n", DONE));
        assert_eq!((&*guarded.out, guarded.status), ("2!1!\n", DONE));
        guest.assert_no_page_is_left();
        let events = guest.events("events");
        let vcpus: Vec<_> = events
            .lines()
            .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()["vcpu"].clone())
            .collect();
        assert_eq!(vcpus, [1, 0], "{events}");
    }
}

const REBOOTS: [&str; 2] = ["-action", "reboot=reset"];

#[test]
fn policy_is_in_force_after_each_reset_of_qemu_machine() {
    for guest in labs(DENIES) {
        write_sector(&guest, RESETS);
        let [plain, guarded] = both(&guest, &[], "kvm", &REBOOTS);
        assert_eq!((&*plain.out, plain.status), (".\n.\n.\n", DONE));
        assert_eq!((&*guarded.out, guarded.status), ("!\n!\n!\n", DONE));
        let said = "guarded 1 VM, and refused 3 accesses\n";
        assert!(guarded.err.contains(said), "{}", guarded.err);
    }
}

/// Returns true if QEMU ran with this option of its accelerator, according to the result `plain`. Otherwise
/// prints why it did not run.
fn runs_with(guest: &Guest, option: &str, plain: &Ran) -> bool {
    let runs = plain.status == DONE;
    if !runs {
        let why = plain.err.lines().find(|line| line.contains(option));
        let (qemu, why) = (guest.qemu.display(), why.unwrap_or(&plain.err));
        skip(option, &format!("{qemu} does not run with {option}: {why}"));
    }
    runs
}

/// With the option `x-change-vmfd-on-reset`, QEMU closes its VM and makes a new one at each reset. The
/// policy is in force in each VM.
#[test]
fn policy_is_in_force_in_new_vm_that_qemu_makes_at_each_reset() {
    for guest in labs(DENIES) {
        write_sector(&guest, RESETS);
        let option = "x-change-vmfd-on-reset";
        let accelerator = format!("kvm,{option}=on");
        let [plain, guarded] = both(&guest, &[], &accelerator, &REBOOTS);
        if !runs_with(&guest, option, &plain) {
            continue;
        }
        assert_eq!(&*plain.out, ".\n.\n.\n");
        assert_eq!((&*guarded.out, guarded.status), ("!\n!\n!\n", DONE));
        let said = "guarded 3 VMs, and refused 3 accesses\n";
        assert!(guarded.err.contains(said), "{}", guarded.err);
    }
}

/// With `rapl=on`, QEMU sets an MSR filter of its own for five registers, one after another. The policy is
/// still in force.
#[test]
fn policy_is_in_force_while_qemu_sets_its_own_msr_filter_for_rapl() {
    for guest in labs(DENIES) {
        let [plain, guarded] = both(&guest, &[], "kvm,rapl=on", &[]);
        if runs_with(&guest, "rapl", &plain) {
            assert_eq!(&*plain.out, "........Q\n");
            assert_eq!((&*guarded.out, guarded.status), ("!!!!!!!!Q\n", DONE));
        }
    }
}

/// The library is in a file in memory, which processes find by an inherited descriptor. QEMU with
/// `-daemonize` keeps that descriptor, and is guarded.
#[test]
fn qemu_daemon_is_guarded_if_library_is_in_memory_file() {
    let memory = rustix::fs::memfd_create("library", rustix::fs::MemfdFlags::empty()).unwrap();
    let mut memory = fs::File::from(memory);
    memory.write_all(&fs::read(library()).unwrap()).unwrap();
    for guest in labs(DENIES) {
        let mut command = guest.exec(&["--summary", "summary"]);
        let path = format!("/proc/self/fd/{}", memory.as_raw_fd());
        command.env("MSRGATE_PRELOAD", path).arg(&guest.qemu);
        machine(&mut command, "file:console");
        let started = ran(command.arg("-daemonize"));
        assert_eq!(started.status, 0, "{}", started.err);
        guest.assert_no_page_is_left();
        let console = fs::read_to_string(guest.path("console")).unwrap();
        assert_eq!(console, "!!!!!!!!Q\n");
        let summary = fs::read_to_string(guest.path("summary")).unwrap();
        let said = "guarded 1 VM, and refused 8 accesses\n";
        assert!(summary.contains(said), "{summary}");
    }
}
