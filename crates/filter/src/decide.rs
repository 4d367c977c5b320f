//! The answer to one access, and the reason for it.

use crate::filter::RangeNumber;

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
