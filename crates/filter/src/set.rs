//! `KVM_X86_SET_MSR_FILTER`: from the struct in the caller's memory to the filters that become
//! visible (S2).

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

/// One `KVM_X86_SET_MSR_FILTER` call: the filters that it makes visible to guests, and its result.
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

/// The reason why a `KVM_X86_SET_MSR_FILTER` call failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum SetError {
    /// The caller is a 32-bit process, for which version 6 of the kernel's filter patch (v6) does
    /// not have the ioctl (S1.6).
    NoSuchCall,
    /// The kernel cannot read the caller's struct, which is at this address (S2.1).
    Unreadable(UserAddress),
    /// The filter has these flags, some bits of which are unknown (S2.2).
    UnknownFlags(u32),
    /// Each range is valid by itself, but the ranges together with the default action do not make a
    /// valid filter (S2.3).
    NoFilter(FilterError),
    /// A range of the filter is invalid (S2.4). If several ranges are invalid, the error describes the first
    /// of them.
    Range {
        /// The position of the invalid range in the struct.
        slot: Slot,
        /// The reason why the kernel refuses the range.
        why: RangeError,
    },
}

/// The reason why the kernel refuses a range of `struct kvm_msr_filter` (S2.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum RangeError {
    /// The range has these flags, some bits of which are unknown.
    UnknownFlags(u32),
    /// The range's flags are 0: neither READ nor WRITE is set.
    NoFlags,
    /// The range has more MSRs than a bitmap can have.
    Bitmap(BitmapError),
    /// The kernel cannot read all bytes of the range's bitmap, which it reads in whole words of 8
    /// bytes.
    Unreadable {
        /// The address of the range's bitmap.
        bitmap: UserAddress,
        /// The number of bytes of the bitmap that the kernel tries to read.
        bytes: usize,
    },
}

impl SetError {
    /// The error number with which the set call fails.
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

    /// The position of the invalid range, if the error is about one range.
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
            Self::NoSuchCall => {
                f.write_str("the kernel has no form of this call for a 32-bit caller")
            }
            Self::Unreadable(at) => write!(f, "the memory of the filter at {at} cannot be read"),
            Self::UnknownFlags(flags) => write!(
                f,
                "the filter's flags {flags:#x} have unknown bits: use 0 for the default action allow, or {DEFAULT_DENY:#x} for deny"
            ),
            Self::NoFilter(error) => write!(f, "{error}"),
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
                "the flags {flags:#x} have unknown bits: use 0x1 for reads, 0x2 for writes, or 0x3 for both"
            ),
            Self::NoFlags => {
                f.write_str("the flags are 0: use 0x1 for reads, 0x2 for writes, or 0x3 for both")
            }
            Self::Bitmap(error) => write!(f, "{error}; split the range"),
            Self::Unreadable { bitmap, bytes } => write!(
                f,
                "the {bytes} bytes of the bitmap at {bitmap} cannot be read: pad the bitmap to whole 8-byte words"
            ),
        }
    }
}

impl core::error::Error for RangeError {}

impl SetCall {
    /// Handles the call `KVM_X86_SET_MSR_FILTER` of a caller of this width, whose `struct
    /// kvm_msr_filter` is at the address `argument`.
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

    /// The filters that this call makes visible to guests, one after the other. The last of them
    /// stays in force.
    ///
    /// On mainline the slice has one filter if the call succeeds, and none if it fails (S2.7). On v6 the
    /// slice is empty if the call fails before it touches the old filter. Otherwise v6 makes several filters
    /// visible: the cleared filter, then the new default without ranges, then one filter for each added
    /// range, up to the invalid range. If the call makes any filter visible, every vCPU is asked to
    /// recompute its intercept bitmap, even if the call fails.
    #[must_use]
    pub fn published(&self) -> &[Filter] {
        &self.published
    }

    /// The result of the set call.
    ///
    /// # Errors
    /// The error of the first check that failed, in the order of S2 of `docs/kvm-semantics.md`.
    pub const fn result(&self) -> Result<(), SetError> {
        self.result
    }
}

impl Request {
    /// Copies and decodes the caller's struct, which is the first step of a set call (S2.1).
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

/// The filter that a set call is building, and the filters that guests have seen so far.
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
            // v6 first replaces the old filter by one that allows everything, whatever the old
            // default action was.
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

    /// Publishes the unfinished filter, with the ranges that were added so far. Only v6 publishes
    /// an unfinished filter.
    fn step(&mut self) -> Result<(), SetError> {
        match self.revision.publication() {
            Publication::Whole => Ok(()),
            Publication::Stepwise => self.publish(),
        }
    }

    /// Makes the filter visible to guests, as it is built so far. The check that default deny has a range
    /// (S2.3) may come after the checks of the ranges: it fails only if all ranges are empty, and an empty
    /// range passes every check.
    fn publish(&mut self) -> Result<(), SetError> {
        let filter = Filter::new(self.revision, self.default_action, self.ranges.clone())
            .map_err(SetError::NoFilter)?;
        self.published.push(filter);
        Ok(())
    }
}

impl RangeRequest {
    /// Checks and reads a range that is not empty, in the order in which this revision of KVM makes
    /// the checks of S2.4.
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
