//! Unsafe: reads the code of the test guest, which is part of this program's image.
//!
//! The built-in guest of the tests: it executes MSR accesses and other instructions in ring 0.
#![expect(unsafe_code, reason = "the guest's code lies between two symbols")]

use std::arch::global_asm;

global_asm!(include_str!("guest.s"), options(att_syntax));

unsafe extern "C" {
    static msrgate_svm_guest: u8;
    static msrgate_svm_guest_end: u8;
}

/// An instruction of the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    Read(u32),
    Write(u32, u64),
    /// RDMSR with two prefixes.
    PrefixedRead(u32),
    /// RDMSR, whose time in ticks is the result.
    TimedRead(u32),
    Vmrun,
    Vmload,
    Vmsave,
    Stgi,
    Clgi,
    Skinit,
    Invlpga,
    /// VMMCALL with this value in EAX.
    Vmmcall(u32),
    /// CPUID of this leaf, whose ECX is the lower half of the result.
    Cpuid(u32),
    /// A read of four bytes of memory.
    Memory(u32),
    /// A read of one byte from a port.
    Port(u16),
}

/// The result of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// The instruction was completed; EDX:EAX has this value.
    Done(u64),
    /// The guest got #GP.
    GeneralProtection,
    /// The guest got #UD.
    UndefinedOpcode,
}

impl Step {
    fn words(self) -> [u32; 4] {
        let value = |operation, index, value: u64| {
            let [low, high] = [value as u32, (value >> 32) as u32];
            [operation, index, low, high]
        };
        match self {
            Self::Read(index) => value(1, index, 0),
            Self::Write(index, written) => value(2, index, written),
            Self::PrefixedRead(index) => value(3, index, 0),
            Self::TimedRead(index) => value(4, index, 0),
            Self::Vmrun => value(16, 0, 0),
            Self::Vmload => value(17, 0, 0),
            Self::Vmsave => value(18, 0, 0),
            Self::Stgi => value(19, 0, 0),
            Self::Clgi => value(20, 0, 0),
            Self::Skinit => value(21, 0, 0),
            Self::Invlpga => value(22, 0, 0),
            Self::Vmmcall(number) => value(23, 0, number.into()),
            Self::Cpuid(leaf) => value(24, leaf, 0),
            Self::Memory(address) => value(25, address, 0),
            Self::Port(port) => value(26, port.into(), 0),
        }
    }
}

/// Returns a multiboot kernel that executes these steps.
pub(crate) fn kernel(steps: &[Step]) -> Vec<u8> {
    const LOADED_AT: u32 = 0x40_0000;
    let (from, end) = (
        &raw const msrgate_svm_guest,
        &raw const msrgate_svm_guest_end,
    );
    let len = end.addr() - from.addr();
    // SAFETY: both symbols are in the read-only data of this program, in this order.
    let code = unsafe { std::slice::from_raw_parts(from, len) };
    let mut segment = code.to_vec();
    for word in steps.iter().flat_map(|step| step.words()).chain([0; 4]) {
        segment.extend(word.to_le_bytes());
    }
    let mut file = b"\x7fELF\x01\x01\x01".to_vec();
    file.resize(0x80, 0);
    let len = u32::try_from(segment.len()).unwrap();
    for (at, word) in [
        (0x10, 3 << 16 | 2),
        (0x14, 1),
        (0x18, LOADED_AT),
        (0x1c, 0x34),
        (0x28, 0x20 << 16 | 0x34),
        (0x2c, 1),
        // The program header: one segment.
        (0x34, 1),
        (0x38, 0x80),
        (0x3c, LOADED_AT),
        (0x40, LOADED_AT),
        (0x44, len),
        (0x48, len),
        (0x4c, 7),
    ] {
        file[at..at + 4].copy_from_slice(&u32::to_le_bytes(word));
    }
    file.extend(segment);
    file
}

/// Reads the results that the guest has sent.
pub(crate) fn outcomes(sent: &[u8]) -> Vec<Outcome> {
    let word = |bytes: &[u8]| u32::from_le_bytes(bytes.try_into().unwrap());
    let steps = sent.chunks_exact(16).map(|step| {
        let value = u64::from(word(&step[12..])) << 32 | u64::from(word(&step[8..12]));
        match word(&step[..4]) {
            0 => Outcome::Done(value),
            6 => Outcome::UndefinedOpcode,
            13 => Outcome::GeneralProtection,
            other => panic!("the guest sent {other} as the result of a step"),
        }
    });
    steps.collect()
}
