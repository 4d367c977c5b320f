//! The filter itself: an immutable, validated list of ranges under a default.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::fmt;

use crate::bitmap::Bitmap;
use crate::decide::Decision;
use crate::decide::Verdict;
use crate::lookup::Lookup;
use crate::msr::{Access, Accesses, MsrIndex};
use crate::revision::Revision;

/// The most ranges one filter has (S1.8).
pub const MAX_RANGES: usize = 16;

/// What holds for an access that no range speaks of (S3.4). Reads and writes share it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fallback {
    /// `KVM_MSR_FILTER_DEFAULT_ALLOW`.
    Allow,
    /// `KVM_MSR_FILTER_DEFAULT_DENY`.
    Deny,
}

impl Fallback {
    /// What it says of an access.
    #[must_use]
    pub const fn verdict(self) -> Verdict {
        match self {
            Self::Allow => Verdict::Allow,
            Self::Deny => Verdict::Deny,
        }
    }
}

impl From<Verdict> for Fallback {
    fn from(verdict: Verdict) -> Self {
        match verdict {
            Verdict::Allow => Self::Allow,
            Verdict::Deny => Self::Deny,
        }
    }
}

/// A range's place in its filter, counted from 0. Empty ranges have none: the kernel drops them,
/// and the kept ones move up (S2.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RangeNumber(u8);

impl RangeNumber {
    /// The place as an index into [`Filter::ranges`].
    #[must_use]
    pub const fn get(self) -> usize {
        self.0 as usize
    }

    pub(crate) const fn new(number: u8) -> Self {
        Self(number)
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

/// A whole filter, as one `KVM_X86_SET_MSR_FILTER` sets it.
#[derive(Clone, PartialEq, Eq)]
pub struct Filter {
    revision: Revision,
    fallback: Fallback,
    /// Without spare room: [`Self::footprint`] has a bound.
    ranges: Box<[Range]>,
    lookup: Lookup,
}

/// A filter that cannot be set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum FilterError {
    /// More than [`MAX_RANGES`]; the number is how many there were.
    TooManyRanges(usize),
    /// Default deny without a range: EINVAL on mainline (S2.3). A range with one bit of 0 makes
    /// the same filter acceptable.
    DenyWithoutRanges,
}

impl fmt::Display for FilterError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooManyRanges(count) => {
                write!(
                    f,
                    "{count} ranges, more than the {MAX_RANGES} of one filter"
                )
            }
            Self::DenyWithoutRanges => f.write_str("default deny without any range"),
        }
    }
}

impl core::error::Error for FilterError {}

impl Filter {
    /// The filter with these ranges, tried in this order.
    ///
    /// # Errors
    /// There are more than [`MAX_RANGES`], or none under default deny on mainline.
    pub fn new(
        revision: Revision,
        fallback: Fallback,
        ranges: Vec<Range>,
    ) -> Result<Self, FilterError> {
        if ranges.len() > MAX_RANGES {
            return Err(FilterError::TooManyRanges(ranges.len()));
        }
        if ranges.is_empty() && fallback == Fallback::Deny && revision.refuses_deny_without_ranges()
        {
            return Err(FilterError::DenyWithoutRanges);
        }
        let lookup = Lookup::build(revision, fallback, &ranges);
        Ok(Self {
            revision,
            fallback,
            ranges: ranges.into_boxed_slice(),
            lookup,
        })
    }

    /// What happens to `access` of `index`, and why (S3). Its time does not depend on the number
    /// of ranges.
    #[inline]
    #[must_use]
    pub fn decide(&self, index: MsrIndex, access: Access) -> Decision {
        self.lookup.decide(index, access)
    }

    /// Whose rules it follows.
    #[must_use]
    pub const fn revision(&self) -> Revision {
        self.revision
    }

    /// What holds where no range does.
    #[must_use]
    pub const fn fallback(&self) -> Fallback {
        self.fallback
    }

    /// The ranges, in the order in which they are tried.
    #[must_use]
    pub fn ranges(&self) -> &[Range] {
        &self.ranges
    }

    /// Bytes of memory it takes, at most 128 KiB.
    #[must_use]
    pub fn footprint(&self) -> usize {
        let bitmaps: usize = self
            .ranges
            .iter()
            .map(|range| size_of_val(range.bitmap.words()))
            .sum();
        size_of::<Self>() + size_of_val(&*self.ranges) + bitmaps + self.lookup.footprint()
    }

    pub(crate) const fn lookup(&self) -> &Lookup {
        &self.lookup
    }
}

impl fmt::Debug for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Filter")
            .field("revision", &self.revision)
            .field("fallback", &self.fallback)
            .field("ranges", &self.ranges)
            .finish_non_exhaustive()
    }
}
