//! The two revisions of KVM's MSR filter that this crate can behave like: mainline Linux, and
//! version 6 of the patch that introduced the filter. Each difference between the two is a method
//! of [`Revision`].

use crate::msr::{MsrIndex, X2APIC};

/// The revision of KVM's MSR filter that a VM of this crate behaves like.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Revision {
    /// The behaviour of current Linux.
    #[default]
    Mainline,
    /// The behaviour of the patch "[PATCH v6 6/7] KVM: x86: Introduce MSR filtering" of 2 September
    /// 2020, as posted.
    V6,
}

/// The steps of a set call that guests can see (S2.7).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Publication {
    /// Guests see the old filter until the call has succeeded, and then the whole new filter. If
    /// the call fails, guests still see the old filter.
    Whole,
    /// Guests see the old filter disappear, and then the unfinished new filter after each added
    /// range.
    Stepwise,
}

/// The order in which a set call checks the flags and the bitmap of a range (S2.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RangeChecks {
    /// The kernel checks the range's flags first. Then the kernel checks the size of the range's
    /// bitmap, and copies the bitmap.
    FlagsFirst,
    /// The kernel checks the size of the range's bitmap and copies the bitmap first. Then the
    /// kernel checks the range's flags.
    BitmapFirst,
}

/// The position of RIP when the guest gets #GP because an exit was answered with an error (S5.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    /// RIP is at the RDMSR or WRMSR, as after any other #GP.
    AtInstruction,
    /// RIP is past the RDMSR or WRMSR, so that the guest's handler sees the wrong address.
    PastInstruction,
}

impl Revision {
    /// The two revisions of KVM's MSR filter: mainline, and version 6 of the patch.
    pub const ALL: [Self; 2] = [Self::Mainline, Self::V6];

    /// Returns true if callers with 32-bit pointers can set a filter (S1.6).
    pub(crate) const fn has_call_for_32_bit_callers(self) -> bool {
        matches!(self, Self::Mainline)
    }

    /// The bits that a filter's flags may have without the set call failing (S2.2). Mainline
    /// accepts only the bit for the default action deny.
    pub(crate) const fn accepted_flags(self) -> u32 {
        match self {
            Self::Mainline => 1,
            Self::V6 => u32::MAX,
        }
    }

    /// Returns true if a set call with default deny and no range, or only empty ranges, fails with
    /// EINVAL (S2.3).
    pub(crate) const fn refuses_deny_without_ranges(self) -> bool {
        matches!(self, Self::Mainline)
    }

    /// Returns true if a filter without ranges allows everything, whatever its default action
    /// (S2.3).
    pub(crate) const fn ignores_default_without_ranges(self) -> bool {
        matches!(self, Self::V6)
    }

    /// The order in which a set call checks the flags and the bitmap of a range (S2.4).
    pub(crate) const fn range_checks(self) -> RangeChecks {
        match self {
            Self::Mainline => RangeChecks::FlagsFirst,
            Self::V6 => RangeChecks::BitmapFirst,
        }
    }

    /// The steps of a set call that guests can see (S2.7).
    pub(crate) const fn publication(self) -> Publication {
        match self {
            Self::Mainline => Publication::Whole,
            Self::V6 => Publication::Stepwise,
        }
    }

    /// Returns true if no filter covers this MSR (S3.1).
    pub(crate) fn exempts(self, index: MsrIndex) -> bool {
        match self {
            Self::Mainline => X2APIC.contains(&index),
            Self::V6 => false,
        }
    }

    /// The number that the capability `KVM_CAP_X86_USER_SPACE_MSR` has in this revision of KVM
    /// (S1.1).
    pub(crate) const fn user_space_msr(self) -> u32 {
        match self {
            Self::Mainline => 188,
            Self::V6 => 184,
        }
    }

    /// The number that the capability `KVM_CAP_X86_MSR_FILTER` has in this revision of KVM (S1.2).
    pub(crate) const fn msr_filter(self) -> u32 {
        match self {
            Self::Mainline => 189,
            Self::V6 => 185,
        }
    }

    /// Numbers of capabilities for which `KVM_CHECK_EXTENSION` returns 1, although they have nothing to do
    /// with MSRs (S1.10). A VMM that asks mainline with v6's numbers mistakes them for the MSR capabilities.
    /// On a real host the result for 185 varies; here the result is 1, the worst case for such a VMM.
    pub(crate) const fn impostors(self) -> &'static [u32] {
        match self {
            Self::Mainline => &[184, 185],
            Self::V6 => &[],
        }
    }

    /// The bit of the exit reason UNKNOWN, or `None` if this revision of KVM does not have the
    /// reason (S1.4). Without this reason, an access to an unknown MSR exits with the reason INVAL
    /// (S5.1).
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

    /// The bits that a reason mask may have without `KVM_ENABLE_CAP` refusing the mask (S1.9).
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

    /// The position of RIP when the guest gets #GP because an exit was answered with an error
    /// (S5.4).
    pub(crate) const fn refused(self) -> Refused {
        match self {
            Self::Mainline => Refused::AtInstruction,
            Self::V6 => Refused::PastInstruction,
        }
    }
}
