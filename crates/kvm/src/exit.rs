//! Exit reasons as raw bits (S1.4): the mask that user space sets, and the reason that the kernel writes.

use std::fmt;

use msrgate_filter::{ExitReason, ReasonMask, Revision};

/// The mask of exit reasons, `args[0]` of `KVM_CAP_X86_USER_SPACE_MSR`. Any bits may be set, because user
/// space can pass any (S1.9).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct RawReasons(u64);

impl RawReasons {
    /// The empty mask: no access exits to user space, and every denied access is a #GP.
    pub const NONE: Self = Self(0);

    /// Creates the mask with these bits.
    #[must_use]
    pub const fn new(bits: u64) -> Self {
        Self(bits)
    }

    /// The bits of the mask.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0
    }

    /// Returns the mask with the exit reasons of both masks.
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

/// The reason of one exit as the kernel wrote it: exactly one bit (S5.2), unless the kernel is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RawReason(u32);

impl RawReason {
    /// Creates the exit reason with these bits.
    #[must_use]
    pub const fn new(bits: u32) -> Self {
        Self(bits)
    }

    /// The bits of the exit reason.
    #[must_use]
    pub const fn get(self) -> u32 {
        self.0
    }

    /// Returns the bit of `reason` in `revision`, or 0 if that revision does not have the reason.
    #[must_use]
    pub fn of(revision: Revision, reason: ExitReason) -> Self {
        let bits = ReasonMask::of(revision, &[reason]).bits();
        Self(u32::try_from(bits).unwrap_or_default())
    }

    /// Returns the reason that these bits mean on mainline; `None` for an unknown bit, several bits or 0.
    #[must_use]
    pub const fn known(self) -> Option<ExitReason> {
        // This function runs at every exit. For speed the bits are repeated here; a test compares them
        // with those of `msrgate-filter`.
        match self.0 {
            1 => Some(ExitReason::Invalid),
            2 => Some(ExitReason::Unknown),
            4 => Some(ExitReason::Filter),
            _ => None,
        }
    }
}

/// Converts an exit reason to the bit that stands for it on mainline.
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
    fn s1_4_raw_reason_is_known_only_if_it_is_one_defined_bit() {
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
