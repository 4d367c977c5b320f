//! The parts of a filter: up to sixteen ranges, and the default action for accesses that no range
//! covers.

use crate::bitmap::Bitmap;
use crate::decide::Verdict;
use crate::msr::{Accesses, MsrIndex};

/// The largest number of ranges in one filter (S1.8).
pub const MAX_RANGES: usize = 16;

/// The default action: the verdict on reads and writes that no range covers (S3.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DefaultAction {
    /// The filter allows the access: `KVM_MSR_FILTER_DEFAULT_ALLOW`.
    Allow,
    /// The filter denies the access: `KVM_MSR_FILTER_DEFAULT_DENY`.
    Deny,
}

impl DefaultAction {
    /// Returns the default action as a verdict.
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

/// A range of a filter: consecutive MSRs with a bitmap, for reads, for writes or for both.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Range {
    accesses: Accesses,
    base: MsrIndex,
    bitmap: Bitmap,
}

impl Range {
    /// Creates a range that starts at `base`, with one bit of `bitmap` for each MSR.
    ///
    /// A range that would reach 2^32 is accepted, as the kernel accepts it, but matches no access
    /// (S2.6, S3.5); [`Self::end`] is then `None`.
    #[must_use]
    pub const fn new(accesses: Accesses, base: MsrIndex, bitmap: Bitmap) -> Self {
        Self {
            accesses,
            base,
            bitmap,
        }
    }

    /// The directions of access that the range covers: reads, writes or both.
    #[must_use]
    pub const fn accesses(&self) -> Accesses {
        self.accesses
    }

    /// The first MSR of the range.
    #[must_use]
    pub const fn base(&self) -> MsrIndex {
        self.base
    }

    /// The bitmap of the range.
    #[must_use]
    pub const fn bitmap(&self) -> &Bitmap {
        &self.bitmap
    }

    /// The MSR after the last one of the range.
    ///
    /// `None` if that number is 2^32 or more: the kernel's 32-bit sum wraps, and the range matches
    /// no access (S3.5).
    #[must_use]
    pub const fn end(&self) -> Option<MsrIndex> {
        match self.base.get().checked_add(self.bitmap.count()) {
            Some(end) => Some(MsrIndex::new(end)),
            None => None,
        }
    }
}
