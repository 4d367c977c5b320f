//! The decision on one access: a verdict and the reason for it.

/// The filter's verdict on a guest's access.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// The guest gets #GP, or user space gets an exit with the reason FILTER.
    Deny = 0,
    /// KVM handles the access as if there were no filter.
    Allow = 1,
}

impl Verdict {
    /// Returns the verdict in the lowest bit of `word`: 1 allows, 0 denies.
    #[inline]
    pub(crate) const fn from_bit(word: u64) -> Self {
        if word & 1 == 1 {
            Self::Allow
        } else {
            Self::Deny
        }
    }
}

/// A range's position in its filter, counted from 0.
///
/// Empty ranges of a set call have no number: the kernel drops them, and the ranges after them move
/// up (S2.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RangeNumber(u8);

impl RangeNumber {
    /// The position as an index into [`Filter::ranges`](crate::Filter::ranges).
    #[must_use]
    pub const fn get(self) -> usize {
        self.0 as usize
    }

    pub(crate) const fn new(number: u8) -> Self {
        Self(number)
    }
}

/// The reason for a verdict on an access (S3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Because {
    /// The MSR is an x2APIC register, which the filter does not cover (S3.1).
    X2apic,
    /// The VM has no filter, so the access is allowed (S3.2).
    NoFilter,
    /// This range decided: the first one that contains the MSR and covers the direction of the
    /// access (S3.3).
    Range(RangeNumber),
    /// No range covers the access, so the default action applies (S3.4).
    Default,
}

/// The decision on one access: the verdict, and the reason for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Decision {
    /// The verdict: the access is allowed or denied.
    pub verdict: Verdict,
    /// The reason for the verdict, such as the range that decides.
    pub because: Because,
}
