//! The mailbox: one slot of 64 bytes for each step of a script, filled by the host, answered by
//! the guest.
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

/// Words in a slot.
pub(super) const WORDS: usize = 8;

/// What the halves of RAX and RDX that an access must not look at hold before it, and all of them
/// before a read: a value that no register has by chance.
const JUNK: u64 = 0x5a5a_0ff1_c0de_a5a5;

/// One thing for the guest to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Op {
    /// RDMSR.
    Read(MsrIndex),
    /// WRMSR of a value.
    Write(MsrIndex, u64),
    /// RDTSC.
    Time,
    /// SWAPGS.
    SwapGs,
}

/// What three registers hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Operands {
    pub(crate) rax: u64,
    pub(crate) rcx: u64,
    pub(crate) rdx: u64,
}

/// What a slot says after the guest was there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Report {
    /// It was not.
    NotReached,
    /// The instruction went through, and left these.
    Done(Operands),
    /// It raised #GP.
    Fault {
        operands: Operands,
        code: u64,
        rip: u64,
    },
}

impl Op {
    /// Where its instruction is, in bytes from the start of the code.
    pub(crate) const fn entry(self) -> u64 {
        match self {
            Self::Read(_) => code::READ,
            Self::Write(..) => code::WRITE,
            Self::Time => code::TIME,
            Self::SwapGs => code::SWAP,
        }
    }

    /// What the registers hold when it begins.
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

    /// Whether these are registers as it leaves them when it goes through: RDMSR and RDTSC clear
    /// the upper halves of RAX and RDX (SDM volume 2), and nothing else changes.
    pub(crate) fn leaves(self, after: Operands) -> bool {
        let before = self.operands();
        match self {
            Self::Read(_) | Self::Time => {
                after.rcx == before.rcx && after.rax >> 32 == 0 && after.rdx >> 32 == 0
            }
            Self::Write(..) | Self::SwapGs => after == before,
        }
    }

    /// What it does to an MSR, if that is what it is for.
    pub(crate) const fn access(self) -> Option<(MsrIndex, Access)> {
        match self {
            Self::Read(index) => Some((index, Access::Read)),
            Self::Write(index, _) => Some((index, Access::Write)),
            Self::Time | Self::SwapGs => None,
        }
    }
}

impl Operands {
    /// EDX:EAX.
    pub(crate) const fn value(self) -> u64 {
        self.rdx << 32 | self.rax & 0xffff_ffff
    }
}

/// Fills a slot, of which `words` are the words.
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

/// Makes a slot the last one.
pub(super) fn fill_end(words: &[AtomicU64], code_address: u64) {
    store(words, [code_address + code::END, 0, 0, 0]);
}

fn store(words: &[AtomicU64], content: [u64; 4]) {
    for (word, value) in words[..WORDS].iter().zip(content.into_iter().chain([0; 4])) {
        word.store(value, Ordering::Relaxed);
    }
}

/// What the guest answered. It may be anything: a guest's write can have gone astray.
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
