//! The filter itself: an immutable, validated list of ranges under a default.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::fmt;

use crate::decide::Decision;
use crate::lookup::Lookup;
use crate::msr::{Access, MsrIndex};
use crate::range::{DefaultAction, MAX_RANGES, Range};
use crate::revision::Revision;

/// A whole filter, as one `KVM_X86_SET_MSR_FILTER` sets it.
#[derive(Clone, PartialEq, Eq)]
pub struct Filter {
    revision: Revision,
    default_action: DefaultAction,
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
        default_action: DefaultAction,
        ranges: Vec<Range>,
    ) -> Result<Self, FilterError> {
        if ranges.len() > MAX_RANGES {
            return Err(FilterError::TooManyRanges(ranges.len()));
        }
        if ranges.is_empty()
            && default_action == DefaultAction::Deny
            && revision.refuses_deny_without_ranges()
        {
            return Err(FilterError::DenyWithoutRanges);
        }
        let lookup = Lookup::build(revision, default_action, &ranges);
        Ok(Self {
            revision,
            default_action,
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
    pub const fn default_action(&self) -> DefaultAction {
        self.default_action
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
            .map(|range| size_of_val(range.bitmap().words()))
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
            .field("default_action", &self.default_action)
            .field("ranges", &self.ranges)
            .finish_non_exhaustive()
    }
}
