//! The two behaviours this crate knows, and the table of everything in which they differ.

use crate::msr::{MsrIndex, X2APIC};

/// Whose behaviour.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Revision {
    /// What Linux runs today.
    #[default]
    Mainline,
    /// The patch "[PATCH v6 6/7] KVM: x86: Introduce MSR filtering" of 2 September 2020 as posted.
    V6,
}

/// What guests see of a filter while it is being set (S2.7).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Publication {
    /// The whole of it at the end, or nothing.
    Whole,
    /// The old one torn down, then the new one as it grows.
    Stepwise,
}

/// What of a range is checked first (S2.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RangeChecks {
    /// Its flags, then the size of its bitmap, then the copy.
    FlagsFirst,
    /// The size, the copy, then the flags.
    BitmapFirst,
}

/// Where the guest is when an exit was answered with an error (S5.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    /// At the instruction, as a fault is.
    AtInstruction,
    /// Past it: the handler sees the wrong address.
    PastInstruction,
}

impl Revision {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Mainline, Self::V6];

    /// Callers with pointers of 32 bits have a form of the call that sets a filter (S1.6).
    pub(crate) const fn has_call_for_32_bit_callers(self) -> bool {
        matches!(self, Self::Mainline)
    }

    /// The bits that a filter's flags may have (S2.2): on mainline, that of default deny.
    pub(crate) const fn accepted_flags(self) -> u32 {
        match self {
            Self::Mainline => 1,
            Self::V6 => u32::MAX,
        }
    }

    /// Default deny with nothing but empty ranges is EINVAL (S2.3).
    pub(crate) const fn refuses_deny_without_ranges(self) -> bool {
        matches!(self, Self::Mainline)
    }

    /// Without ranges everything is allowed, whatever the default (S2.3).
    pub(crate) const fn ignores_default_without_ranges(self) -> bool {
        matches!(self, Self::V6)
    }

    /// The order in which a range is checked (S2.4).
    pub(crate) const fn range_checks(self) -> RangeChecks {
        match self {
            Self::Mainline => RangeChecks::FlagsFirst,
            Self::V6 => RangeChecks::BitmapFirst,
        }
    }

    /// What guests see of a filter while it is being set (S2.7).
    pub(crate) const fn publication(self) -> Publication {
        match self {
            Self::Mainline => Publication::Whole,
            Self::V6 => Publication::Stepwise,
        }
    }

    /// No filter reaches this MSR, whatever it says (S3.1).
    pub(crate) fn exempts(self, index: MsrIndex) -> bool {
        match self {
            Self::Mainline => X2APIC.contains(&index),
            Self::V6 => false,
        }
    }

    /// `KVM_CAP_X86_USER_SPACE_MSR` (S1.1).
    pub(crate) const fn user_space_msr(self) -> u32 {
        match self {
            Self::Mainline => 188,
            Self::V6 => 184,
        }
    }

    /// `KVM_CAP_X86_MSR_FILTER` (S1.2).
    pub(crate) const fn msr_filter(self) -> u32 {
        match self {
            Self::Mainline => 189,
            Self::V6 => 185,
        }
    }

    /// Capabilities that have nothing to do with MSRs and answer 1, for which a probe with the
    /// other revision's numbers takes its own (S1.10). Whether 185 answers 1 depends on the host;
    /// here it does, as the worst for such a probe.
    pub(crate) const fn impostors(self) -> &'static [u32] {
        match self {
            Self::Mainline => &[184, 185],
            Self::V6 => &[],
        }
    }

    /// The bit of the exit reason UNKNOWN, if there is such a reason (S1.4). Without it an access
    /// of an unknown MSR fails as an invalid one (S5.1).
    pub(crate) const fn unknown_reason_bit(self) -> Option<u32> {
        match self {
            Self::Mainline => Some(2),
            Self::V6 => None,
        }
    }

    /// The bit of the exit reason FILTER (S1.4).
    pub(crate) const fn filter_reason_bit(self) -> u32 {
        match self {
            Self::Mainline => 4,
            Self::V6 => 2,
        }
    }

    /// The bits that a reason mask may have (S1.9).
    pub(crate) const fn accepted_reasons(self) -> u64 {
        match self {
            Self::Mainline => 7,
            Self::V6 => u64::MAX,
        }
    }

    /// The offset of `msr.reason` in `struct kvm_run`, in bytes (S1.5).
    pub(crate) const fn run_reason_offset(self) -> usize {
        match self {
            Self::Mainline => 40,
            Self::V6 => 36,
        }
    }

    /// The offset of `msr.index` in `struct kvm_run`, in bytes (S1.5).
    pub(crate) const fn run_index_offset(self) -> usize {
        match self {
            Self::Mainline => 44,
            Self::V6 => 40,
        }
    }

    /// Where the guest is when an exit was answered with an error (S5.4).
    pub(crate) const fn refused(self) -> Refused {
        match self {
            Self::Mainline => Refused::AtInstruction,
            Self::V6 => Refused::PastInstruction,
        }
    }
}
