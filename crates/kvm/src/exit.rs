//! Reasons of exits as raw bits: what user space asks for, and what the kernel gives (S1.4).

use std::fmt;

use msrgate_filter::{ExitReason, ReasonMask, Revision};

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

    /// The bit that `reason` has in this revision. A reason that it does not have is no bit.
    #[must_use]
    pub fn of(revision: Revision, reason: ExitReason) -> Self {
        let bits = ReasonMask::of(revision, &[reason]).bits();
        Self(u32::try_from(bits).unwrap_or_default())
    }

    /// The reason they stand for on mainline, or `None` if they are none or several, or unknown.
    #[must_use]
    pub const fn known(self) -> Option<ExitReason> {
        // Each exit asks, so the bits are here once more; a test compares them.
        match self.0 {
            1 => Some(ExitReason::Invalid),
            2 => Some(ExitReason::Unknown),
            4 => Some(ExitReason::Filter),
            _ => None,
        }
    }
}

/// The bit of mainline.
impl From<ExitReason> for RawReason {
    fn from(reason: ExitReason) -> Self {
        Self::of(Revision::Mainline, reason)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn s1_4_reasons_are_single_known_bits() {
        for (bits, reason) in [
            (1, ExitReason::Invalid),
            (2, ExitReason::Unknown),
            (4, ExitReason::Filter),
        ] {
            assert_eq!(RawReason::new(bits).known(), Some(reason));
            assert_eq!(RawReason::from(reason).get(), bits);
        }
        for bits in [0, 3, 6, 7, 8] {
            assert_eq!(RawReason::new(bits).known(), None);
        }
        assert_eq!(RawReason::of(Revision::V6, ExitReason::Filter).get(), 2);
    }
}
