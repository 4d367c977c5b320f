//! The answer to one access, and the reason for it.

/// Whether a guest's access goes on to the register.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// The guest gets #GP, or user space gets an exit with reason FILTER.
    Deny = 0,
    /// KVM handles the access as if there were no filter.
    Allow = 1,
}

impl Verdict {
    /// What the lowest bit of a bitmap's word says: 1 allows.
    #[inline]
    pub(crate) const fn from_bit(word: u64) -> Self {
        if word & 1 == 1 {
            Self::Allow
        } else {
            Self::Deny
        }
    }
}

/// A range's place in its filter, counted from 0. Empty ranges have none: the kernel drops them,
/// and the kept ones move up (S2.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RangeNumber(u8);

impl RangeNumber {
    /// The place as an index into [`Filter::ranges`](crate::Filter::ranges).
    #[must_use]
    pub const fn get(self) -> usize {
        self.0 as usize
    }

    pub(crate) const fn new(number: u8) -> Self {
        Self(number)
    }
}

/// What decided an access (S3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Because {
    /// The index is an x2APIC register, which no filter reaches (S3.1).
    X2apic,
    /// No filter is set (S3.2).
    NoFilter,
    /// The first range that contains the index and speaks of this access (S3.3).
    Range(RangeNumber),
    /// No range speaks of the access, so the default holds (S3.4).
    Default,
}

/// A verdict with its reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Decision {
    /// What happens.
    pub verdict: Verdict,
    /// Why.
    pub because: Because,
}
