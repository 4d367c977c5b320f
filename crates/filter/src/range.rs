//! The parts of a filter: up to sixteen ranges, and the default where no range speaks.

use crate::bitmap::Bitmap;
use crate::decide::Verdict;
use crate::msr::{Accesses, MsrIndex};

/// The most ranges one filter has (S1.8).
pub const MAX_RANGES: usize = 16;

/// What holds for an access that no range speaks of (S3.4). Reads and writes share it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DefaultAction {
    /// `KVM_MSR_FILTER_DEFAULT_ALLOW`.
    Allow,
    /// `KVM_MSR_FILTER_DEFAULT_DENY`.
    Deny,
}

impl DefaultAction {
    /// What it says of an access.
    #[must_use]
    pub const fn verdict(self) -> Verdict {
        match self {
            Self::Allow => Verdict::Allow,
            Self::Deny => Verdict::Deny,
        }
    }
}

impl From<Verdict> for DefaultAction {
    fn from(verdict: Verdict) -> Self {
        match verdict {
            Verdict::Allow => Self::Allow,
            Verdict::Deny => Self::Deny,
        }
    }
}

/// A bitmap over consecutive MSRs, for one direction or for both.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Range {
    accesses: Accesses,
    base: MsrIndex,
    bitmap: Bitmap,
}

impl Range {
    /// The range that starts at `base` and has a bit for each of the next MSRs.
    ///
    /// A range that would reach 2^32 is accepted, as it is by the kernel, and matches nothing
    /// (S2.6, S3.5); [`Self::end`] tells.
    #[must_use]
    pub const fn new(accesses: Accesses, base: MsrIndex, bitmap: Bitmap) -> Self {
        Self {
            accesses,
            base,
            bitmap,
        }
    }

    /// The directions it speaks of.
    #[must_use]
    pub const fn accesses(&self) -> Accesses {
        self.accesses
    }

    /// Its first MSR.
    #[must_use]
    pub const fn base(&self) -> MsrIndex {
        self.base
    }

    /// Its bits.
    #[must_use]
    pub const fn bitmap(&self) -> &Bitmap {
        &self.bitmap
    }

    /// One past its last MSR, or `None` where that is 2^32 or more: then the kernel's 32-bit sum
    /// wraps and the range matches nothing (S3.5).
    #[must_use]
    pub const fn end(&self) -> Option<MsrIndex> {
        match self.base.get().checked_add(self.bitmap.count()) {
            Some(end) => Some(MsrIndex::new(end)),
            None => None,
        }
    }
}
