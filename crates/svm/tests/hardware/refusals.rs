//! Tests of refusals: instructions, memory and ports that a guest does not reach, and machines that do not start.

use msrgate_emulated::{Ended, Outcome, Ran, Step, archive, kernel};
use msrgate_filter::{Accesses, MsrIndex, Verdict};
use msrgate_program::{Program, ProgramBuilder};

use crate::{has_qemu, machine, steps};

fn allows_all() -> Program {
    ProgramBuilder::new(Verdict::Allow).build().unwrap()
}

#[test]
fn instructions_of_svm_are_undefined_and_cpuid_hides_svm() {
    if !has_qemu() {
        return;
    }
    let tried = [
        Step::Vmrun,
        Step::Vmload,
        Step::Vmsave,
        Step::Stgi,
        Step::Clgi,
        Step::Skinit,
        Step::Invlpga,
        Step::Vmmcall(0),
        Step::Cpuid(0x8000_0001),
        Step::Cpuid(1),
    ];
    let (outcomes, _) = steps(&allows_all(), &tried);
    assert_eq!(outcomes[..8], [Outcome::UndefinedOpcode; 8]);
    let ecx = |outcome| match outcome {
        Outcome::Done(value) => value & 0xffff_ffff,
        other => panic!("CPUID gave {other:?}"),
    };
    assert_eq!(ecx(outcomes[8]) & 1 << 2, 0, "SVM");
    assert_eq!(ecx(outcomes[9]) & 1 << 21, 0, "x2APIC");
}

#[test]
fn guest_that_reads_hypervisors_memory_ends_machine() {
    if !has_qemu() {
        return;
    }
    for address in [0x20_0000, 0x3f_fffc] {
        let ran = machine(&allows_all(), &[Step::Memory(address)])
            .run()
            .unwrap();
        refused(&ran, 0x33, &format!("the guest touched {address:#x}"));
    }
}

#[test]
fn debug_console_is_closed_to_guest() {
    if !has_qemu() {
        return;
    }
    let (outcomes, _) = steps(&allows_all(), &[Step::Port(0xe9)]);
    assert_eq!(outcomes, [Outcome::Done(0xe9 << 32 | 0xff)]);
}

/// Checks that the machine has ended with this status and this sentence.
fn refused(ran: &Ran, code: u8, sentence: &str) {
    let said = String::from_utf8_lossy(&ran.serial);
    assert_eq!(ran.ended, Ended::Code(code), "{said}{}", ran.debug);
    assert!(said.contains(sentence), "{said}");
    assert!(ran.debug.contains(sentence), "{}", ran.debug);
}

const NOT_STARTED: u8 = 0x32;

#[test]
fn machine_that_cannot_be_guarded_is_refused_with_sentence() {
    if !has_qemu() {
        return;
    }
    let empty = || machine(&allows_all(), &[]);
    let ran = empty().cpu("EPYC,-svm").run().unwrap();
    refused(&ran, 0x39, "this processor has no SVM");
    let ran = empty().cpu("EPYC,+svm,-npt").run().unwrap();
    refused(&ran, NOT_STARTED, "this processor has no nested paging");
    let ran = empty().options(&["-smp", "9"]).run().unwrap();
    refused(&ran, NOT_STARTED, "more than 8 processors");
}

#[test]
fn bad_archive_is_refused_with_sentence() {
    if !has_qemu() {
        return;
    }
    let empty = machine(&allows_all(), &[]);
    let ran = empty.clone().without_archive().run().unwrap();
    refused(&ran, NOT_STARTED, "there is no archive");
    let ran = empty.clone().archive(b"070701").run().unwrap();
    refused(&ran, NOT_STARTED, "the archive is no cpio archive");
    let without_program = archive(&[("kernel", &kernel(&[]))]);
    let ran = empty.archive(&without_program).run().unwrap();
    refused(&ran, NOT_STARTED, "the archive has no file \"program\"");
}

#[test]
fn bad_file_of_archive_is_refused_with_sentence() {
    if !has_qemu() {
        return;
    }
    let empty = || machine(&allows_all(), &[]);
    let ran = empty().file("kernel", b"#!/bin/sh").run().unwrap();
    refused(
        &ran,
        NOT_STARTED,
        "neither a bzImage nor a multiboot kernel",
    );
    let ran = empty().file("program", b"no program").run().unwrap();
    refused(&ran, NOT_STARTED, "the file \"program\" of the archive: ");
    let index = MsrIndex::new(0x10);
    let asks = ProgramBuilder::new(Verdict::Allow).handler(index, Accesses::Read, "vmm");
    let ran = machine(&asks.build().unwrap(), &[]).run().unwrap();
    refused(&ran, NOT_STARTED, "the program names a handler or a device");
}
