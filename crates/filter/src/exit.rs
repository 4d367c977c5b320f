//! The exit to user space that an MSR access causes: the fields of `kvm_run` that `KVM_RUN` fills
//! in and later reads back (S5).

use core::fmt;

use crate::msr::{Access, MsrIndex};
use crate::registers::RegisterFault;
use crate::revision::Revision;

/// The reason for which an access failed. An exit has exactly one reason (S5.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ExitReason {
    /// `KVM_MSR_EXIT_REASON_INVAL`: KVM knows the register, but the written value is illegal, or this
    /// guest does not have the register.
    Invalid,
    /// `KVM_MSR_EXIT_REASON_UNKNOWN`: KVM does not know the register. Version 6 of the kernel's
    /// filter patch (v6) reports `Invalid` instead.
    Unknown,
    /// `KVM_MSR_EXIT_REASON_FILTER`: the filter refused the access.
    Filter,
}

impl ExitReason {
    /// All three exit reasons.
    pub const ALL: [Self; 3] = [Self::Invalid, Self::Unknown, Self::Filter];

    /// The bit that stands for this exit reason, in a reason mask and in `kvm_run` (S1.4). Returns
    /// `None` if this revision of KVM does not have the reason.
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

    /// Returns the exit reason for an access that the filter allowed and the register refused
    /// (S5.1).
    pub(crate) const fn of(fault: RegisterFault, revision: Revision) -> Self {
        match fault {
            RegisterFault::Unknown if revision.unknown_reason_bit().is_some() => Self::Unknown,
            RegisterFault::Unknown | RegisterFault::Invalid => Self::Invalid,
        }
    }
}

/// Writes the reason as one word, which `msrgate doctor` and events show.
impl fmt::Display for ExitReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Invalid => "invalid",
            Self::Unknown => "unknown",
            Self::Filter => "filter",
        })
    }
}

/// The reason mask of a VM. An access that fails for a reason in the mask exits to user space; if it
/// fails for another reason, the guest gets #GP (S5.2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct ReasonMask(u32);

/// An error for a reason mask with bits that stand for no exit reason of the VM's revision of KVM:
/// the call fails with EINVAL (S1.9).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnknownReasons(u64);

impl ReasonMask {
    /// The empty mask, with which no access exits. A new VM has this mask.
    pub const NONE: Self = Self(0);

    /// Creates the mask from `args[0]` of `KVM_ENABLE_CAP`. v6 keeps the lower 32 bits and ignores the
    /// upper 32 bits.
    ///
    /// # Errors
    /// [`UnknownReasons`] on mainline, if a bit is set that mainline does not know. v6 accepts
    /// every mask.
    pub const fn from_bits(revision: Revision, bits: u64) -> Result<Self, UnknownReasons> {
        let unknown = bits & !revision.accepted_reasons();
        if unknown == 0 {
            Ok(Self(low(bits)))
        } else {
            Err(UnknownReasons(unknown))
        }
    }

    /// Creates the mask with these reasons. A reason that this revision of KVM does not have adds
    /// no bit.
    #[must_use]
    pub fn of(revision: Revision, reasons: &[ExitReason]) -> Self {
        let bits = reasons.iter().filter_map(|reason| reason.bit(revision));
        Self(bits.fold(0, |mask, bit| mask | bit.0))
    }

    /// Returns true if the mask has this reason, so that an access that fails for it exits to user
    /// space.
    #[must_use]
    pub const fn contains(self, revision: Revision, reason: ExitReason) -> bool {
        match reason.bit(revision) {
            Some(bit) => self.0 & bit.0 != 0,
            None => false,
        }
    }

    /// The bits of the mask, as `KVM_ENABLE_CAP` takes them.
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
        write!(f, "the exit reason mask has unknown bits: {:#x}", self.0)
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

/// The value of `kvm_run.exit_reason`: the kind of event that made `KVM_RUN` return.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ExitNumber(u32);

impl ExitNumber {
    /// `KVM_EXIT_X86_RDMSR`: the guest's RDMSR exited (S1.3).
    pub const RDMSR: Self = Self(29);
    /// `KVM_EXIT_X86_WRMSR`: the guest's WRMSR exited (S1.3).
    pub const WRMSR: Self = Self(30);

    /// The number that `kvm_run.exit_reason` has.
    #[must_use]
    pub const fn get(self) -> u32 {
        self.0
    }
}

/// An exit to user space that an MSR access of the guest caused, with the fields that user space sees
/// (S5.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Exit {
    /// The MSR that the guest accesses: its ECX.
    pub index: MsrIndex,
    /// The direction of the access.
    pub access: Access,
    /// The value that the guest writes, from EDX:EAX; 0 for a read.
    pub data: u64,
    /// The reason for which the access failed.
    pub reason: ExitReason,
}

impl Exit {
    /// The number that `KVM_RUN` stores in `kvm_run.exit_reason`.
    #[must_use]
    pub const fn number(&self) -> ExitNumber {
        match self.access {
            Access::Read => ExitNumber::RDMSR,
            Access::Write => ExitNumber::WRMSR,
        }
    }
}

/// The answer of user space to an exit: the only fields that the next `KVM_RUN` reads back (S5.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Reply {
    /// The error byte: 0 completes the access, any other value is #GP(0) (S5.4).
    pub error: u8,
    /// The value that a completed read returns to the guest. `KVM_RUN` ignores the value if the
    /// access is a write.
    pub data: u64,
}

impl Reply {
    /// The answer with which the guest gets #GP(0).
    pub const FAULT: Self = Self { error: 1, data: 0 };
    /// The answer that completes a write.
    pub const DONE: Self = Self { error: 0, data: 0 };

    /// Creates the answer that completes a read with `data`.
    #[must_use]
    pub const fn value(data: u64) -> Self {
        Self { error: 0, data }
    }

    /// Returns the answer that is in `kvm_run` if the VMM writes no answer after an exit. With this
    /// answer a read completes with 0, and a write completes without an effect.
    #[must_use]
    pub const fn unanswered(exit: &Exit) -> Self {
        Self::value(exit.data)
    }
}

/// The offsets of an exit's fields in `struct kvm_run`, in bytes (S1.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RunLayout {
    /// The offset of `msr.error`, one byte.
    pub error: usize,
    /// The offset of `msr.reason`, four bytes.
    pub reason: usize,
    /// The offset of `msr.index`, four bytes.
    pub index: usize,
    /// The offset of `msr.data`, eight bytes.
    pub data: usize,
}

impl RunLayout {
    /// Returns the offsets that this revision of KVM uses.
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
