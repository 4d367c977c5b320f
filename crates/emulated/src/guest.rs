//! Unsafe: reads the guest's code, which is part of this program's image.
//!
//! The guest: it executes MSR accesses and other instructions in ring 0, and sends what became of each.
#![expect(unsafe_code, reason = "the guest's code lies between two symbols")]

use std::arch::global_asm;

global_asm!(include_str!("guest.s"), options(att_syntax));

unsafe extern "C" {
    static msrgate_svm_guest: u8;
    static msrgate_svm_guest_end: u8;
}

/// An instruction of the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// RDMSR of this register.
    Read(u32),
    /// WRMSR of this value to this register.
    Write(u32, u64),
    /// RDMSR of this register, with two prefixes.
    PrefixedRead(u32),
    /// RDMSR of this register. The result is the time that it takes, in ticks of the time-stamp counter.
    TimedRead(u32),
    /// VMRUN.
    Vmrun,
    /// VMLOAD.
    Vmload,
    /// VMSAVE.
    Vmsave,
    /// STGI.
    Stgi,
    /// CLGI.
    Clgi,
    /// SKINIT.
    Skinit,
    /// INVLPGA.
    Invlpga,
    /// VMMCALL with this value in EAX.
    Vmmcall(u32),
    /// CPUID of this leaf. The lower half of the result is ECX.
    Cpuid(u32),
    /// A read of four bytes of memory at this address.
    Memory(u32),
    /// A read of one byte from this port.
    Port(u16),
    /// The start of the other processors, which then read LSTAR until they get #GP. They count the completed reads in the
    /// memory at [`READS`].
    StartOthers,
    /// The wait until another processor has had #GP. The result is 0 if none had for a long time.
    WaitForFault,
}

/// The address at which other processors count their completed reads of LSTAR.
pub const READS: u32 = 0x9800;

/// The code with which the guest ends the machine.
pub const END: u8 = 0x10;

/// The result of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
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
            let [a, b, c, d, high @ ..] = value.to_le_bytes();
            let low = u32::from_le_bytes([a, b, c, d]);
            [operation, index, low, u32::from_le_bytes(high)]
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
            Self::StartOthers => value(27, 0, 0),
            Self::WaitForFault => value(28, 0, 0),
        }
    }
}

/// Returns a multiboot kernel that executes these steps, sends their results, and ends the machine with
/// [`END`].
#[must_use]
pub fn kernel(steps: &[Step]) -> Vec<u8> {
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
    let len = u32::try_from(segment.len()).unwrap_or(u32::MAX);
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

/// Reads the results that the guest has sent. Returns `None` if the bytes are no results.
#[must_use]
pub fn outcomes(sent: &[u8]) -> Option<Vec<Outcome>> {
    let (steps, rest) = sent.as_chunks::<16>();
    let outcome = |step: &[u8; 16]| {
        let word =
            |at: usize| u32::from_le_bytes([step[at], step[at + 1], step[at + 2], step[at + 3]]);
        let value = u64::from(word(12)) << 32 | u64::from(word(8));
        match word(0) {
            0 => Some(Outcome::Done(value)),
            6 => Some(Outcome::UndefinedOpcode),
            13 => Some(Outcome::GeneralProtection),
            _ => None,
        }
    };
    rest.is_empty()
        .then(|| steps.iter().map(outcome).collect())?
}
