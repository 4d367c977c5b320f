use std::vec;
use std::vec::Vec;

use msrgate_emulated::archive;

use super::*;
use crate::archive::{Files, files};
use crate::memory::tests::Ram;

const INFO: u64 = 0x6000;
const ARCHIVE: u64 = 0x180_0004;

/// A machine of 32 MiB with its start information, and an archive with these files.
fn machine(contents: &[(&str, &[u8])]) -> (Ram, Vec<u8>) {
    let mut ram = Ram::of_mib(32);
    let bytes = archive(contents);
    let mut put = |at: u64, bytes: &[u8]| ram.write(at, bytes).unwrap();
    put(INFO, &0x336e_c578u32.to_le_bytes());
    put(INFO + 4, &1u32.to_le_bytes());
    put(INFO + 12, &1u32.to_le_bytes());
    put(INFO + 16, &0x7000u64.to_le_bytes());
    put(INFO + 40, &0x7100u64.to_le_bytes());
    put(INFO + 48, &2u32.to_le_bytes());
    put(0x7000, &ARCHIVE.to_le_bytes());
    put(0x7008, &(bytes.len() as u64).to_le_bytes());
    for (at, start, len) in [(0x7100, 0u64, 0xa_0000u64), (0x7118, 0x10_0000, 31 << 20)] {
        put(at, &start.to_le_bytes());
        put(at + 8, &len.to_le_bytes());
        put(at + 16, &1u32.to_le_bytes());
    }
    put(ARCHIVE, &bytes);
    (ram, bytes)
}

/// A bzImage that prefers to run at 16 MiB and needs 4 MiB.
fn bzimage() -> Vec<u8> {
    let mut kernel = vec![0; 0x600 + 100];
    kernel[0x1f1] = 2;
    kernel[0x201] = 0x66;
    kernel[0x202..0x206].copy_from_slice(b"HdrS");
    kernel[0x206..0x208].copy_from_slice(&0x20fu16.to_le_bytes());
    kernel[0x236] = 1;
    kernel[0x258..0x260].copy_from_slice(&0x100_0000u64.to_le_bytes());
    kernel[0x260..0x264].copy_from_slice(&0x40_0000u32.to_le_bytes());
    kernel[0x600..].fill(0x90);
    kernel
}

fn loaded(contents: &[(&str, &[u8])]) -> (Ram, Result<Start, BootError>) {
    let (mut ram, bytes) = machine(contents);
    let machine = Machine::read(&ram, INFO).unwrap();
    let files: Files<'_> = files(&bytes).unwrap();
    let start = load(&mut ram, &machine, &files);
    (ram, start)
}

#[test]
fn hypervisors_pages_are_reserved_in_memory_map() {
    let (ram, bytes) = machine(&[]);
    let machine = Machine::read(&ram, INFO).unwrap();
    let map: Vec<_> = machine
        .regions
        .iter()
        .map(|one| (one.start, one.end, one.kind))
        .collect();
    assert_eq!(
        map,
        [
            (0, 0xa_0000, FREE),
            (0x10_0000, OWN.start, FREE),
            (OWN.start, OWN.end, RESERVED),
            (OWN.end, 32 << 20, FREE),
        ]
    );
    assert_eq!(machine.archive, ARCHIVE..ARCHIVE + bytes.len() as u64);
}

#[test]
fn start_information_that_is_none_is_refused() {
    let (mut ram, _) = machine(&[]);
    ram.write(INFO + 12, &0u32.to_le_bytes()).unwrap();
    assert_eq!(Machine::read(&ram, INFO), Err(BootError::NoArchive));
    ram.write(INFO, &[0]).unwrap();
    assert_eq!(Machine::read(&ram, INFO), Err(BootError::NoStartInfo));
    assert_eq!(Machine::read(&ram, 64 << 20), Err(BootError::NoStartInfo));
}

#[test]
fn bzimage_begins_at_its_64_bit_entry_with_parameters_and_initramfs() {
    let kernel = bzimage();
    let (ram, start) = loaded(&[
        ("kernel", &kernel),
        ("initramfs", b"files"),
        ("cmdline", b"quiet\n"),
        ("program", b"p"),
    ]);
    let Start::Long(registers) = start.unwrap() else {
        panic!("a bzImage begins in long mode");
    };
    assert_eq!((registers.rip, registers.rsi), (0x100_0200, PARAMETERS));
    assert_eq!(ram.0[0x100_0000..0x100_0064], [0x90; 100]);
    assert_eq!(&ram.0[0x1_8000..0x1_8006], b"quiet\0");
    assert_eq!(ram.0[0x1_01e8], 4);
    let initramfs = ram.u32(PARAMETERS + 0x218).unwrap() as usize;
    assert_eq!(
        (initramfs % 4096, &ram.0[initramfs..initramfs + 5]),
        (0, &b"files"[..])
    );
    assert_eq!(ram.u32(PARAMETERS + 0x21c), Some(5));
}

#[test]
fn kernel_that_cannot_be_started_is_refused_with_its_reason() {
    let error = |kernel: &[u8]| {
        let (_, start) = loaded(&[("kernel", kernel), ("program", b"p")]);
        start.unwrap_err()
    };
    let good = bzimage();
    let with = |at: usize, byte| {
        let mut kernel = good.clone();
        kernel[at] = byte;
        kernel
    };
    assert_eq!(error(&with(0x236, 0)), BootError::No64BitEntry);
    assert_eq!(error(&with(0x207, 1)), BootError::No64BitEntry);
    assert_eq!(error(&with(0x263, 2)), BootError::NoRoom); // needs 32 MiB more
    assert_eq!(error(&with(0x25f, 0xff)), BootError::NoRoom); // wants to run behind all memory
    let mut in_hypervisor = with(0x25a, 0x20);
    in_hypervisor[0x25b] = 0;
    assert_eq!(error(&in_hypervisor), BootError::NoRoom);
    assert_eq!(error(&good[..0x250]), BootError::CutOff);
    assert_eq!(error(&good[..0x300]), BootError::CutOff);
    assert_eq!(error(b"\x7fELF\x02"), BootError::NoKernel);
    assert_eq!(error(b"#!/bin/sh"), BootError::NoKernel);
}

#[test]
fn command_line_that_is_too_long_is_refused() {
    let line = vec![b'a'; LONGEST_COMMAND_LINE + 1];
    let (_, start) = loaded(&[
        ("kernel", &bzimage()),
        ("cmdline", &line),
        ("program", b"p"),
    ]);
    assert_eq!(start, Err(BootError::LongCommandLine(LONGEST_COMMAND_LINE)));
}

/// A multiboot kernel with one segment, which is put to `to`.
fn multiboot(to: u32) -> Vec<u8> {
    let mut kernel = vec![0; 0x100];
    kernel[..5].copy_from_slice(b"\x7fELF\x01");
    for (at, value) in [
        (0x18, to + 0x20),
        (0x1c, 0x40),
        (0x28, 0x20 << 16 | 0x34),
        (0x2c, 1),
        (0x40, 1),
        (0x44, 0x80),
        (0x4c, to),
        (0x50, 0x40),
        (0x54, 0x1000),
        (0x80, 0x1bad_b002),
    ] {
        kernel[at..at + 4].copy_from_slice(&value.to_le_bytes());
    }
    kernel
}

#[test]
fn multiboot_kernel_begins_in_protected_mode_with_its_information() {
    let (ram, start) = loaded(&[("kernel", &multiboot(0x40_0000)), ("program", b"p")]);
    let Start::Protected(registers) = start.unwrap() else {
        panic!("a multiboot kernel begins in protected mode");
    };
    assert_eq!(
        (registers.rip, registers.rax, registers.rbx),
        (0x40_0020, LOADER, PARAMETERS)
    );
    assert_eq!(ram.u32(0x40_0000), Some(0x1bad_b002));
    assert_eq!(ram.u32(PARAMETERS + 4), Some(640));
    assert_eq!(ram.u32(PARAMETERS + 8), Some(31 * 1024));
}

const LOADER: u64 = 0x2bad_b002;

#[test]
fn multiboot_kernel_that_would_overwrite_hypervisor_is_refused() {
    for to in [0x20_0000, 0x3f_f000, 0x1f_f001, 0x1_0000, 0xffff_f000] {
        let (_, start) = loaded(&[("kernel", &multiboot(to)), ("program", b"p")]);
        assert_eq!(start, Err(BootError::NoRoom), "{to:#x}");
    }
}
