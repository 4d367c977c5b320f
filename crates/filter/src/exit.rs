//! An access that user space is to answer: what `KVM_RUN` hands out and takes back (S5).

use core::fmt;

use crate::msr::{Access, MsrIndex};
use crate::registers::RegisterFault;
use crate::revision::Revision;

/// Why an access failed. An exit has exactly one reason (S5.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ExitReason {
    /// `KVM_MSR_EXIT_REASON_INVAL`: the value is illegal, or the register not there for the guest.
    Invalid,
    /// `KVM_MSR_EXIT_REASON_UNKNOWN`: no such register is known. Not of v6, where it is `Invalid`.
    Unknown,
    /// `KVM_MSR_EXIT_REASON_FILTER`: the filter refused the access.
    Filter,
}

impl ExitReason {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Invalid, Self::Unknown, Self::Filter];

    /// Its bit, in a mask and in `kvm_run` (S1.4), or `None` if the revision does not have it.
    #[must_use]
    pub const fn bit(self, revision: Revision) -> Option<ReasonMask> {
        let bit = match self {
            Self::Invalid => Some(1),
            Self::Unknown => revision.unknown_reason_bit(),
            Self::Filter => Some(revision.filter_reason_bit()),
        };
        match bit {
            Some(bit) => Some(ReasonMask(bit)),
            None => None,
        }
    }

    /// The reason that a register's own fault has (S5.1).
    pub(crate) const fn of(fault: RegisterFault, revision: Revision) -> Self {
        match fault {
            RegisterFault::Unknown if revision.unknown_reason_bit().is_some() => Self::Unknown,
            RegisterFault::Unknown | RegisterFault::Invalid => Self::Invalid,
        }
    }
}

/// In one word, as `doctor` and events write it.
impl fmt::Display for ExitReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Invalid => "invalid",
            Self::Unknown => "unknown",
            Self::Filter => "filter",
        })
    }
}

/// The reasons for which a VM's accesses exit; for the others the guest gets #GP (S5.2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct ReasonMask(u32);

/// Bits in a mask that are no reason of the revision: EINVAL (S1.9).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnknownReasons(u64);

impl ReasonMask {
    /// No access exits. A VM begins so.
    pub const NONE: Self = Self(0);

    /// The mask in `args[0]` of `KVM_ENABLE_CAP`. v6 keeps its lower 32 bits, whatever they are.
    ///
    /// # Errors
    /// Bits are set that mainline does not know.
    pub const fn from_bits(revision: Revision, bits: u64) -> Result<Self, UnknownReasons> {
        let unknown = bits & !revision.accepted_reasons();
        if unknown == 0 {
            Ok(Self(low(bits)))
        } else {
            Err(UnknownReasons(unknown))
        }
    }

    /// The mask with these reasons; one that the revision does not have adds nothing.
    #[must_use]
    pub fn of(revision: Revision, reasons: &[ExitReason]) -> Self {
        let bits = reasons.iter().filter_map(|reason| reason.bit(revision));
        Self(bits.fold(0, |mask, bit| mask | bit.0))
    }

    /// Whether an access that fails for this reason exits.
    #[must_use]
    pub const fn contains(self, revision: Revision, reason: ExitReason) -> bool {
        match reason.bit(revision) {
            Some(bit) => self.0 & bit.0 != 0,
            None => false,
        }
    }

    /// The bits, as `KVM_ENABLE_CAP` takes them.
    #[must_use]
    pub const fn bits(self) -> u64 {
        self.0 as u64
    }

    pub(crate) const fn from_stored(bits: u32) -> Self {
        Self(bits)
    }

    pub(crate) const fn stored(self) -> u32 {
        self.0
    }
}

impl fmt::Display for UnknownReasons {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "no exit reason has a bit of {:#x}", self.0)
    }
}

impl core::error::Error for UnknownReasons {}

#[expect(
    clippy::cast_possible_truncation,
    reason = "v6 truncates too, and mainline has refused what is above"
)]
const fn low(bits: u64) -> u32 {
    bits as u32
}

/// `kvm_run.exit_reason`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ExitNumber(u32);

impl ExitNumber {
    /// `KVM_EXIT_X86_RDMSR` (S1.3).
    pub const RDMSR: Self = Self(29);
    /// `KVM_EXIT_X86_WRMSR` (S1.3).
    pub const WRMSR: Self = Self(30);

    /// The number itself.
    #[must_use]
    pub const fn get(self) -> u32 {
        self.0
    }
}

/// What user space is told of an access (S5.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Exit {
    /// ECX.
    pub index: MsrIndex,
    /// Which instruction it was.
    pub access: Access,
    /// EDX:EAX for a write, 0 for a read.
    pub data: u64,
    /// Why it failed.
    pub reason: ExitReason,
}

impl Exit {
    /// The number that `KVM_RUN` leaves in `kvm_run.exit_reason`.
    #[must_use]
    pub const fn number(&self) -> ExitNumber {
        match self.access {
            Access::Read => ExitNumber::RDMSR,
            Access::Write => ExitNumber::WRMSR,
        }
    }
}

/// What the next `KVM_RUN` reads back, and nothing else (S5.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Reply {
    /// 0 completes the access; anything else is #GP(0) (S5.4).
    pub error: u8,
    /// What a completed read returns.
    pub data: u64,
}

impl Reply {
    /// The guest gets #GP(0).
    pub const FAULT: Self = Self { error: 1, data: 0 };
    /// The write is done.
    pub const DONE: Self = Self { error: 0, data: 0 };

    /// The read returns this.
    #[must_use]
    pub const fn value(data: u64) -> Self {
        Self { error: 0, data }
    }

    /// What `KVM_RUN` leaves there: a VMM that answers nothing completes a read with 0 and drops
    /// a write.
    #[must_use]
    pub const fn unanswered(exit: &Exit) -> Self {
        Self::value(exit.data)
    }
}

/// Where an exit's fields are in `struct kvm_run`, in bytes from its start (S1.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RunLayout {
    /// `msr.error`, one byte.
    pub error: usize,
    /// `msr.reason`, four bytes.
    pub reason: usize,
    /// `msr.index`, four bytes.
    pub index: usize,
    /// `msr.data`, eight bytes.
    pub data: usize,
}

impl RunLayout {
    /// The layout of this revision.
    #[must_use]
    pub const fn of(revision: Revision) -> Self {
        Self {
            error: 32,
            reason: revision.run_reason_offset(),
            index: revision.run_index_offset(),
            data: 48,
        }
    }
}
