//! Reasons of exits as raw bits: what user space asks for, and what the kernel gives (S1.4).

use std::fmt;

use msrgate_filter::Revision;

/// `args[0]` of `KVM_CAP_X86_USER_SPACE_MSR`: any bits, because user space can pass any (S1.9).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct RawReasons(u64);

impl RawReasons {
    /// No exits: every refusal is a #GP.
    pub const NONE: Self = Self(0);

    /// These bits.
    #[must_use]
    pub const fn new(bits: u64) -> Self {
        Self(bits)
    }

    /// The bits.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0
    }

    /// What either asks for.
    #[must_use]
    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl From<ReasonMask> for RawReasons {
    fn from(mask: ReasonMask) -> Self {
        Self(mask.bits())
    }
}

impl fmt::Display for RawReasons {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

/// The reason an exit gave, as the kernel wrote it: one bit (S5.2), unless the kernel is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RawReason(u32);

impl RawReason {
    /// These bits.
    #[must_use]
    pub const fn new(bits: u32) -> Self {
        Self(bits)
    }

    /// The bits.
    #[must_use]
    pub const fn get(self) -> u32 {
        self.0
    }

    /// The reason they stand for on mainline, or `None` if they are none or several, or unknown.
    #[must_use]
    pub fn known(self) -> Option<ExitReason> {
        ExitReason::ALL
            .into_iter()
            .find(|&reason| Self::from(reason) == self)
    }
}

/// The bit of mainline.
impl From<ExitReason> for RawReason {
    fn from(reason: ExitReason) -> Self {
        let mask = ReasonMask::of(Revision::Mainline, &[reason]);
        // A reason has one of three bits, so the upper half is 0.
        Self(mask.bits() as u32)
    }
}

impl fmt::Display for RawReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.known() {
            Some(reason) => reason.fmt(f),
            None => write!(f, "{:#x}", self.0),
        }
    }
}

// --- stand-in for msrgate_filter::{ExitReason, ReasonMask} ---

/// Why an access failed. An exit has exactly one reason (S5.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ExitReason {
    /// `KVM_MSR_EXIT_REASON_INVAL`.
    Invalid,
    /// `KVM_MSR_EXIT_REASON_UNKNOWN`.
    Unknown,
    /// `KVM_MSR_EXIT_REASON_FILTER`.
    Filter,
}

impl ExitReason {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Invalid, Self::Unknown, Self::Filter];
}

impl fmt::Display for ExitReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Invalid => "invalid",
            Self::Unknown => "unknown",
            Self::Filter => "filter",
        })
    }
}

/// The reasons for which a VM's accesses exit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct ReasonMask(u32);

impl ReasonMask {
    /// No access exits.
    pub const NONE: Self = Self(0);

    /// The mask with these reasons.
    #[must_use]
    pub fn of(_: Revision, reasons: &[ExitReason]) -> Self {
        let bits = reasons.iter().map(|reason| match reason {
            ExitReason::Invalid => 1,
            ExitReason::Unknown => 2,
            ExitReason::Filter => 4,
        });
        Self(bits.fold(0, |mask, bit| mask | bit))
    }

    /// The bits.
    #[must_use]
    pub const fn bits(self) -> u64 {
        self.0 as u64
    }
}
