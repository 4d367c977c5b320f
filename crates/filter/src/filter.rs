//! The filter: an immutable, validated list of ranges and a default action.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::fmt;

use crate::decide::Decision;
use crate::lookup::Lookup;
use crate::msr::{Access, MsrIndex};
use crate::range::{DefaultAction, MAX_RANGES, Range};
use crate::revision::Revision;

/// A complete filter, as one `KVM_X86_SET_MSR_FILTER` call sets it.
#[derive(Clone, PartialEq, Eq)]
pub struct Filter {
    revision: Revision,
    default_action: DefaultAction,
    /// The filter's ranges. The field is a boxed slice, because a `Vec` with spare capacity would break
    /// the bound of [`Self::footprint`].
    ranges: Box<[Range]>,
    lookup: Lookup,
}

/// An error for ranges and a default action that do not make a valid filter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum FilterError {
    /// The filter would have this many ranges, which is more than [`MAX_RANGES`].
    TooManyRanges(usize),
    /// The default action is deny and the list of ranges is empty. Mainline refuses such a filter
    /// with EINVAL (S2.3). A range with a single 0 bit makes an equivalent filter that the kernel
    /// accepts.
    DenyWithoutRanges,
}

impl fmt::Display for FilterError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooManyRanges(count) => {
                write!(
                    f,
                    "{count} ranges are too many: a filter has at most {MAX_RANGES}"
                )
            }
            Self::DenyWithoutRanges => {
                f.write_str("a filter with the default action deny needs at least one range")
            }
        }
    }
}

impl core::error::Error for FilterError {}

impl Filter {
    /// Creates a filter of these ranges. The first range that covers an access decides.
    ///
    /// # Errors
    /// - [`FilterError::TooManyRanges`]: there are more than [`MAX_RANGES`] ranges.
    /// - [`FilterError::DenyWithoutRanges`]: `ranges` is empty and the default action is deny, on
    ///   mainline.
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

    /// Returns the verdict on `access` to the MSR `index`, and the reason for the verdict (S3). A
    /// decision takes the same time for one range and for sixteen.
    #[inline]
    #[must_use]
    pub fn decide(&self, index: MsrIndex, access: Access) -> Decision {
        self.lookup.decide(index, access)
    }

    /// The revision of KVM that the filter is for.
    #[must_use]
    pub const fn revision(&self) -> Revision {
        self.revision
    }

    /// The default action, for accesses that no range covers.
    #[must_use]
    pub const fn default_action(&self) -> DefaultAction {
        self.default_action
    }

    /// The filter's ranges, in the order in which the kernel tries them for an access.
    #[must_use]
    pub fn ranges(&self) -> &[Range] {
        &self.ranges
    }

    /// The memory that the filter takes, in bytes: at most 128 KiB.
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
