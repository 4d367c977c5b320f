//! `KVM_X86_SET_MSR_FILTER`: from the caller's memory to the filters that become visible (S2).

use alloc::vec;
use alloc::vec::Vec;
use core::fmt;

use crate::abi::{CallerWidth, DEFAULT_DENY, RangeRequest, Request, Slot, UserAddress, UserMemory};
use crate::bitmap::{Bitmap, BitmapError};
use crate::errno::Errno;
use crate::filter::{Filter, FilterError};
use crate::msr::{Accesses, MsrIndex};
use crate::range::{DefaultAction, Range};
use crate::revision::{Publication, RangeChecks, Revision};

/// One call and what came of it.
///
/// ```
/// use msrgate_filter::abi::{CallerWidth, Request, Segment, UserAddress};
/// use msrgate_filter::{Access, Accesses, Bitmap, DefaultAction, Filter, MsrIndex, Range};
/// use msrgate_filter::{Revision, SetCall, Verdict};
///
/// let bits = Bitmap::from_fn(8, |offset| offset == 3)?;
/// let range = Range::new(Accesses::Both, MsrIndex::new(0x174), bits);
/// let filter = Filter::new(Revision::Mainline, DefaultAction::Deny, vec![range])?;
///
/// // The caller's memory: the struct, then the bitmaps.
/// let start = UserAddress::new(0x7000);
/// let (request, bitmaps) = Request::of(&filter, UserAddress::new(0x7000 + 392));
/// let bytes = [request.encode(CallerWidth::Bits64)?, bitmaps].concat();
/// let memory = Segment { start, bytes: &bytes };
///
/// let call = SetCall::read(Revision::Mainline, CallerWidth::Bits64, &memory, start);
/// call.result()?;
/// let decision = call.published()[0].decide(MsrIndex::new(0x177), Access::Write);
/// assert_eq!(decision.verdict, Verdict::Allow);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct SetCall {
    published: Vec<Filter>,
    result: Result<(), SetError>,
}

/// Why the call failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum SetError {
    /// This revision has no form of the call for 32-bit callers (S1.6).
    NoSuchCall,
    /// The struct at this address cannot be read (S2.1).
    Unreadable(UserAddress),
    /// The filter's flags, which have bits that mean nothing (S2.2).
    UnknownFlags(u32),
    /// The ranges are fine each, but make no filter (S2.3).
    NoFilter(FilterError),
    /// The first bad range (S2.4).
    Range {
        /// Its place in the struct.
        slot: Slot,
        /// What is bad about it.
        why: RangeError,
    },
}

/// Why a range was refused (S2.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum RangeError {
    /// Its flags, which have bits that mean nothing.
    UnknownFlags(u32),
    /// Neither READ nor WRITE.
    NoFlags,
    /// It has more MSRs than a bitmap.
    Bitmap(BitmapError),
    /// The bitmap cannot be read, all its whole words.
    Unreadable {
        /// Where it begins.
        bitmap: UserAddress,
        /// How many bytes of it are read.
        bytes: usize,
    },
}

impl SetError {
    /// What `ioctl(2)` sets `errno` to.
    #[must_use]
    pub const fn errno(&self) -> Errno {
        match self {
            Self::NoSuchCall => Errno::Enotty,
            Self::Unreadable(_)
            | Self::Range {
                why: RangeError::Unreadable { .. },
                ..
            } => Errno::Efault,
            Self::UnknownFlags(_) | Self::NoFilter(_) | Self::Range { .. } => Errno::Einval,
        }
    }

    /// The range to blame, if it is one.
    #[must_use]
    pub const fn slot(&self) -> Option<Slot> {
        match self {
            Self::Range { slot, .. } => Some(*slot),
            _ => None,
        }
    }
}

impl fmt::Display for SetError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoSuchCall => f.write_str("no form of this call for a 32-bit caller"),
            Self::Unreadable(at) => write!(f, "the filter at {at} is not readable memory"),
            Self::UnknownFlags(flags) => write!(
                f,
                "unknown bits in the filter's flags {flags:#x}: 0 allows by default, \
                 {DEFAULT_DENY:#x} denies"
            ),
            Self::NoFilter(error) => write!(f, "{error}: add a range"),
            Self::Range { slot, why } => write!(f, "range {slot}: {why}"),
        }
    }
}

impl core::error::Error for SetError {}

impl fmt::Display for RangeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnknownFlags(flags) => write!(
                f,
                "unknown bits in the flags {flags:#x}: 0x1 speaks of reads, 0x2 of writes"
            ),
            Self::NoFlags => f.write_str("flags 0: set 0x1 for reads, 0x2 for writes, or both"),
            Self::Bitmap(error) => write!(f, "{error}: split it"),
            Self::Unreadable { bitmap, bytes } => write!(
                f,
                "the bitmap at {bitmap} is not {bytes} bytes of readable memory: pad it to whole \
                 8-byte words"
            ),
        }
    }
}

impl core::error::Error for RangeError {}

impl SetCall {
    /// Makes the call: `argument` is where a caller of this width has its `struct kvm_msr_filter`.
    #[must_use]
    pub fn read(
        revision: Revision,
        width: CallerWidth,
        memory: &(impl UserMemory + ?Sized),
        argument: UserAddress,
    ) -> Self {
        let mut publisher = Publisher::new(revision);
        let result = Request::read(revision, width, memory, argument)
            .and_then(|request| publisher.set(&request, memory));
        Self {
            published: publisher.published,
            result,
        }
    }

    /// The filters that become visible to guests, one after the other; the last one stays.
    ///
    /// On mainline one on success, none on failure (S2.7). On v6, unless the call fails before it
    /// touches anything, first the cleared filter, then the new default without ranges, then one
    /// more range each time, up to the bad one. If there is any, every vCPU is asked to recompute
    /// its intercepts, even where the call fails.
    #[must_use]
    pub fn published(&self) -> &[Filter] {
        &self.published
    }

    /// What the call returns.
    ///
    /// # Errors
    /// The first check of S2 that failed.
    pub const fn result(&self) -> Result<(), SetError> {
        self.result
    }
}

impl Request {
    /// The copy with which the call begins (S2.1).
    fn read(
        revision: Revision,
        width: CallerWidth,
        memory: &(impl UserMemory + ?Sized),
        argument: UserAddress,
    ) -> Result<Self, SetError> {
        if width == CallerWidth::Bits32 && !revision.has_call_for_32_bit_callers() {
            return Err(SetError::NoSuchCall);
        }
        let mut bytes = vec![0; width.struct_size()];
        memory
            .read(argument, &mut bytes)
            .ok()
            .and_then(|()| Self::decode(&bytes, width).ok())
            .ok_or(SetError::Unreadable(argument))
    }
}

/// The filter in the making, and what guests have seen of it.
struct Publisher {
    revision: Revision,
    default_action: DefaultAction,
    ranges: Vec<Range>,
    published: Vec<Filter>,
}

impl Publisher {
    const fn new(revision: Revision) -> Self {
        Self {
            revision,
            // The cleared filter of v6 allows everything, whatever it has for a default.
            default_action: DefaultAction::Allow,
            ranges: Vec::new(),
            published: Vec::new(),
        }
    }

    fn set(
        &mut self,
        request: &Request,
        memory: &(impl UserMemory + ?Sized),
    ) -> Result<(), SetError> {
        self.step()?;
        let unknown = request.flags & !self.revision.accepted_flags();
        if unknown != 0 {
            return Err(SetError::UnknownFlags(request.flags));
        }
        self.default_action = match request.flags & DEFAULT_DENY {
            0 => DefaultAction::Allow,
            _ => DefaultAction::Deny,
        };
        self.step()?;
        for (slot, range) in request.slots().filter(|(_, range)| range.nmsrs != 0) {
            let range = range
                .read(self.revision, memory)
                .map_err(|why| SetError::Range { slot, why })?;
            self.ranges.push(range);
            self.step()?;
        }
        match self.revision.publication() {
            Publication::Whole => self.publish(),
            Publication::Stepwise => Ok(()),
        }
    }

    /// A point at which v6 lets guests see what there is.
    fn step(&mut self) -> Result<(), SetError> {
        match self.revision.publication() {
            Publication::Whole => Ok(()),
            Publication::Stepwise => self.publish(),
        }
    }

    /// S2.3 needs no look ahead: where all ranges are empty, none of them can fail before this.
    fn publish(&mut self) -> Result<(), SetError> {
        let filter = Filter::new(self.revision, self.default_action, self.ranges.clone())
            .map_err(SetError::NoFilter)?;
        self.published.push(filter);
        Ok(())
    }
}

impl RangeRequest {
    /// The checks of S2.4 on a range that is not empty, in the revision's order.
    fn read(
        &self,
        revision: Revision,
        memory: &(impl UserMemory + ?Sized),
    ) -> Result<Range, RangeError> {
        let (accesses, bitmap) = match revision.range_checks() {
            RangeChecks::FlagsFirst => (self.accesses()?, self.copy(memory)?),
            RangeChecks::BitmapFirst => {
                let bitmap = self.copy(memory)?;
                (self.accesses()?, bitmap)
            }
        };
        Ok(Range::new(accesses, MsrIndex::new(self.base), bitmap))
    }

    fn accesses(&self) -> Result<Accesses, RangeError> {
        Accesses::from_bits(self.flags).ok_or(match self.flags {
            0 => RangeError::NoFlags,
            flags => RangeError::UnknownFlags(flags),
        })
    }

    fn copy(&self, memory: &(impl UserMemory + ?Sized)) -> Result<Bitmap, RangeError> {
        let words = Bitmap::words_for(self.nmsrs).map_err(RangeError::Bitmap)?;
        let mut bytes = vec![0; words * size_of::<u64>()];
        memory
            .read(self.bitmap, &mut bytes)
            .map_err(|_| RangeError::Unreadable {
                bitmap: self.bitmap,
                bytes: bytes.len(),
            })?;
        let words = bytes
            .as_chunks()
            .0
            .iter()
            .copied()
            .map(u64::from_le_bytes)
            .collect();
        Bitmap::from_words(self.nmsrs, words).map_err(RangeError::Bitmap)
    }
}

#[cfg(test)]
mod tests;
