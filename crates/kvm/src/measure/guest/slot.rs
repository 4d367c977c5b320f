//! The mailbox between host and guest: one slot of 64 bytes for each step of a script. The host fills a
//! slot, and the guest writes the result of the step into it.
//!
//! | offset | the host writes | the guest answers |
//! |---|---|---|
//! | 0x00 | the address of the code that does the step | |
//! | 0x08 | RAX before | RAX after |
//! | 0x10 | RDX before | RDX after |
//! | 0x18 | RCX before | RCX after |
//! | 0x20 | 0 | 1 done, 2 #GP |
//! | 0x28 | 0 | #GP: its error code |
//! | 0x30 | 0 | #GP: its RIP |
//! | 0x38 | 0 | |

use std::sync::atomic::{AtomicU64, Ordering};

use msrgate_filter::{Access, MsrIndex};

use super::code;

/// The number of 64-bit words in a slot.
pub(super) const WORDS: usize = 8;

/// The value that RAX and RDX have, before an access, in those bits that hold no operand: in their upper
/// halves, and before a read also in their lower halves. No register holds this value by chance.
const JUNK: u64 = 0x5a5a_0ff1_c0de_a5a5;

/// One instruction for the guest to execute.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Op {
    /// RDMSR of this MSR.
    Read(MsrIndex),
    /// WRMSR of this value to this MSR.
    Write(MsrIndex, u64),
    /// RDTSC, which reads the time-stamp counter.
    Time,
    /// SWAPGS, which swaps the GS base with `KERNEL_GS_BASE`.
    SwapGs,
}

/// The values that RAX, RCX and RDX have before or after an instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Operands {
    pub(crate) rax: u64,
    pub(crate) rcx: u64,
    pub(crate) rdx: u64,
}

/// The result that the guest has written into a slot after it executed the slot's step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Report {
    /// The guest has not executed the step yet.
    NotReached,
    /// The instruction completed and left these registers.
    Done(Operands),
    /// The instruction raised #GP.
    Fault {
        operands: Operands,
        code: u64,
        rip: u64,
    },
}

impl Op {
    /// The offset of the instruction that executes this op, from the start of the guest's code, in bytes.
    pub(crate) const fn entry(self) -> u64 {
        match self {
            Self::Read(_) => code::READ,
            Self::Write(..) => code::WRITE,
            Self::Time => code::TIME,
            Self::SwapGs => code::SWAP,
        }
    }

    /// The values that the registers have when the instruction begins.
    pub(crate) const fn operands(self) -> Operands {
        let high = JUNK & !0xffff_ffff;
        match self {
            Self::Read(index) => Operands {
                rax: JUNK,
                rcx: index.get() as u64,
                rdx: !JUNK,
            },
            Self::Write(index, value) => Operands {
                rax: high | value & 0xffff_ffff,
                rcx: index.get() as u64,
                rdx: high | value >> 32,
            },
            Self::Time | Self::SwapGs => Operands {
                rax: JUNK,
                rcx: JUNK,
                rdx: !JUNK,
            },
        }
    }

    /// Returns true if this instruction can have left the values `after` in the registers. RDMSR and RDTSC
    /// clear the upper halves of RAX and RDX (SDM volume 2); nothing else changes.
    pub(crate) fn leaves(self, after: Operands) -> bool {
        let before = self.operands();
        match self {
            Self::Read(_) | Self::Time => {
                after.rcx == before.rcx && after.rax >> 32 == 0 && after.rdx >> 32 == 0
            }
            Self::Write(..) | Self::SwapGs => after == before,
        }
    }

    /// The MSR that the instruction accesses and the direction of the access; `None` for RDTSC and
    /// SWAPGS.
    pub(crate) const fn access(self) -> Option<(MsrIndex, Access)> {
        match self {
            Self::Read(index) => Some((index, Access::Read)),
            Self::Write(index, _) => Some((index, Access::Write)),
            Self::Time | Self::SwapGs => None,
        }
    }
}

impl Operands {
    /// The 64-bit value that EDX and EAX hold together.
    pub(crate) const fn value(self) -> u64 {
        self.rdx << 32 | self.rax & 0xffff_ffff
    }
}

/// Fills a slot, which consists of `words`, with the step that executes `op`.
pub(super) fn fill(words: &[AtomicU64], code_address: u64, op: Op) {
    let before = op.operands();
    let content = [
        code_address + op.entry(),
        before.rax,
        before.rdx,
        before.rcx,
    ];
    store(words, content);
}

/// Makes the slot that consists of `words` the end of the script.
pub(super) fn fill_end(words: &[AtomicU64], code_address: u64) {
    store(words, [code_address + code::END, 0, 0, 0]);
}

fn store(words: &[AtomicU64], content: [u64; 4]) {
    for (word, value) in words[..WORDS].iter().zip(content.into_iter().chain([0; 4])) {
        word.store(value, Ordering::Relaxed);
    }
}

/// Reads the guest's report from a slot. The slot may contain anything, because a guest can write to the
/// wrong place.
pub(super) fn report(words: &[AtomicU64]) -> Report {
    let word = |offset: usize| words[offset / 8].load(Ordering::Relaxed);
    let operands = Operands {
        rax: word(0x08),
        rdx: word(0x10),
        rcx: word(0x18),
    };
    match word(0x20) {
        1 => Report::Done(operands),
        2 => Report::Fault {
            operands,
            code: word(0x28),
            rip: word(0x30),
        },
        _ => Report::NotReached,
    }
}
