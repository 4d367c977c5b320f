//! The bytes of `KVM_X86_SET_MSR_FILTER`'s argument, as user space lays them out (S1.6, S1.7).
//!
//! This module only encodes and decodes the struct. [`SetCall`](crate::SetCall) validates the
//! struct's fields.

use alloc::vec::Vec;
use core::fmt;

use crate::filter::Filter;
use crate::msr::Accesses;
use crate::range::{DefaultAction, MAX_RANGES, Range};

/// `KVM_MSR_FILTER_DEFAULT_DENY`, the only known bit of [`Request::flags`]. If the bit is 0, the
/// default action is allow.
pub const DEFAULT_DENY: u32 = 1 << 0;
/// `KVM_MSR_FILTER_READ`, a bit of [`RangeRequest::flags`].
pub const RANGE_READ: u32 = Accesses::Read.bits();
/// `KVM_MSR_FILTER_WRITE`, a bit of [`RangeRequest::flags`].
pub const RANGE_WRITE: u32 = Accesses::Write.bits();

/// The size of a caller's pointers. The layout of `struct kvm_msr_filter` depends on this size
/// (S1.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CallerWidth {
    /// The caller is a 64-bit process.
    Bits64,
    /// The caller is a 32-bit process on a 64-bit kernel.
    Bits32,
}

/// The layout of `struct kvm_msr_filter` for callers of one width: the sizes of the struct and of a
/// range, and the offsets of some of their fields, in bytes.
struct Layout {
    size: usize,
    first_range: usize,
    range: usize,
    bitmap: usize,
}

const NMSRS: usize = 4;
const BASE: usize = 8;

impl CallerWidth {
    /// The two widths of a caller's pointers: 64 and 32 bits.
    pub const ALL: [Self; 2] = [Self::Bits64, Self::Bits32];

    /// The number that a caller of this width passes to `ioctl(2)`:
    /// `_IOW(0xAE, 0xc6, struct kvm_msr_filter)`. The number contains the size of the caller's
    /// struct.
    #[must_use]
    pub const fn ioctl_number(self) -> u32 {
        match self {
            Self::Bits64 => 0x4188_aec6,
            Self::Bits32 => 0x4104_aec6,
        }
    }

    /// `sizeof(struct kvm_msr_filter)` for a caller of this width, in bytes.
    #[must_use]
    pub const fn struct_size(self) -> usize {
        self.layout().size
    }

    const fn layout(self) -> Layout {
        match self {
            Self::Bits64 => Layout {
                size: 392,
                first_range: 8,
                range: 24,
                bitmap: 16,
            },
            Self::Bits32 => Layout {
                size: 260,
                first_range: 4,
                range: 16,
                bitmap: 12,
            },
        }
    }
}

/// An address in the caller's memory, aligned or not, readable or not.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UserAddress(u64);

impl UserAddress {
    /// The address `NULL`.
    pub const NULL: Self = Self(0);

    /// Creates the address with this number.
    #[must_use]
    pub const fn new(address: u64) -> Self {
        Self(address)
    }

    /// The address as a number.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0
    }
}

impl fmt::Debug for UserAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for UserAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

/// The error of [`UserMemory::read`]: at least one of the bytes is not readable memory of the
/// process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault;

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("unreadable memory")
    }
}

impl core::error::Error for Fault {}

/// The memory of the process that calls `KVM_X86_SET_MSR_FILTER`.
pub trait UserMemory {
    /// Fills `into` with the bytes of the process's memory from the address `from` on.
    ///
    /// # Errors
    /// [`Fault`] if one of the bytes cannot be read, or lies past the end of the address space.
    fn read(&self, from: UserAddress, into: &mut [u8]) -> Result<(), Fault>;
}

/// A segment of the caller's readable memory, with no readable memory around it.
#[derive(Clone, Copy, Debug)]
pub struct Segment<'a> {
    /// The address of the segment's first byte in the caller's memory.
    pub start: UserAddress,
    /// The bytes of the segment.
    pub bytes: &'a [u8],
}

impl UserMemory for Segment<'_> {
    fn read(&self, from: UserAddress, into: &mut [u8]) -> Result<(), Fault> {
        let offset = from.get().checked_sub(self.start.get()).ok_or(Fault)?;
        let offset = usize::try_from(offset).map_err(|_| Fault)?;
        let bytes = self.bytes.get(offset..).ok_or(Fault)?;
        into.copy_from_slice(bytes.get(..into.len()).ok_or(Fault)?);
        Ok(())
    }
}

/// Several segments of the caller's readable memory. A read succeeds if all its bytes lie within one
/// segment. If several segments contain the bytes, the first one supplies them.
impl UserMemory for [Segment<'_>] {
    fn read(&self, from: UserAddress, into: &mut [u8]) -> Result<(), Fault> {
        self.iter()
            .find_map(|segment| segment.read(from, into).ok())
            .ok_or(Fault)
    }
}

/// The position of a range in `struct kvm_msr_filter`, counted from 0. The struct has sixteen
/// positions.
///
/// Unused ranges have a slot too, so a slot is not a [`RangeNumber`](crate::RangeNumber).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Slot(u8);

impl Slot {
    /// The slot as an index into [`Request::ranges`].
    #[must_use]
    pub const fn get(self) -> usize {
        self.0 as usize
    }
}

impl fmt::Display for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The fields of `struct kvm_msr_filter`, not validated. `B` is the type of a range's bitmap: an
/// address, or a value that the caller will replace by an address.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Request<B = UserAddress> {
    /// The flags: [`DEFAULT_DENY`], and any unknown bits that the caller has set.
    pub flags: u32,
    /// The filter's ranges. A range of 0 MSRs is unused.
    pub ranges: [RangeRequest<B>; MAX_RANGES],
}

/// The fields of `struct kvm_msr_filter_range`, not validated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RangeRequest<B = UserAddress> {
    /// The flags: [`RANGE_READ`], [`RANGE_WRITE`], and any unknown bits that the caller has set.
    pub flags: u32,
    /// The number of MSRs in the range.
    pub nmsrs: u32,
    /// The first MSR of the range.
    pub base: u32,
    /// The bitmap, or its address. The bitmap has one bit for each MSR, in whole little-endian
    /// words of 8 bytes (S2.4).
    pub bitmap: B,
}

/// An error for bytes that do not form the `struct kvm_msr_filter` of a caller of the given width.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum DecodeError {
    /// The number of bytes is not the size of the struct.
    WrongSize {
        /// The number of bytes that were to be decoded.
        found: usize,
        /// The size that the struct has for a caller of this width, in bytes.
        expected: usize,
    },
}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::WrongSize { found, expected } => {
                write!(
                    f,
                    "the bytes have the length {found}, but the struct has {expected} bytes"
                )
            }
        }
    }
}

impl core::error::Error for DecodeError {}

/// An error for a request that does not fit the `struct kvm_msr_filter` of a caller of the given width.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum EncodeError {
    /// The bitmap of this slot lies above 4 GiB, which a pointer of a 32-bit caller cannot reach.
    PointerTooWide {
        /// The slot of the range whose bitmap lies too high.
        slot: Slot,
        /// The address of the range's bitmap.
        bitmap: UserAddress,
    },
}

impl fmt::Display for EncodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PointerTooWide { slot, bitmap } => write!(
                f,
                "range {slot}: a 32-bit pointer cannot hold the bitmap's address {bitmap}"
            ),
        }
    }
}

impl core::error::Error for EncodeError {}

impl<B> Request<B> {
    /// Iterates over the request's ranges with their slots.
    pub fn slots(&self) -> impl Iterator<Item = (Slot, &RangeRequest<B>)> {
        (0..).map(Slot).zip(&self.ranges)
    }

    /// Creates the request that sets `filter`. The closure `bitmap` returns the content of the field
    /// [`RangeRequest::bitmap`] for each range.
    #[must_use]
    pub fn with_bitmaps(filter: &Filter, mut bitmap: impl FnMut(&Range) -> B) -> Self
    where
        B: Default,
    {
        let mut request = Self {
            flags: match filter.default_action() {
                DefaultAction::Allow => 0,
                DefaultAction::Deny => DEFAULT_DENY,
            },
            ..Self::default()
        };
        for (place, range) in request.ranges.iter_mut().zip(filter.ranges()) {
            *place = RangeRequest {
                flags: range.accesses().bits(),
                nmsrs: range.bitmap().count(),
                base: range.base().get(),
                bitmap: bitmap(range),
            };
        }
        request
    }

    /// Returns the request with the field `bitmap` of each range replaced by the result that the
    /// closure `bitmap` returns for that field.
    pub fn map_bitmaps<'r, C>(&'r self, mut bitmap: impl FnMut(&'r B) -> C) -> Request<C> {
        Request {
            flags: self.flags,
            ranges: self.ranges.each_ref().map(|range| RangeRequest {
                flags: range.flags,
                nmsrs: range.nmsrs,
                base: range.base,
                bitmap: bitmap(&range.bitmap),
            }),
        }
    }
}

impl Request {
    /// Decodes the bytes of the `struct kvm_msr_filter` of a caller of this width. Padding is
    /// ignored.
    ///
    /// # Errors
    /// [`DecodeError::WrongSize`] if `bytes` does not have [`CallerWidth::struct_size`] bytes.
    pub fn decode(bytes: &[u8], width: CallerWidth) -> Result<Self, DecodeError> {
        let layout = width.layout();
        if bytes.len() != layout.size {
            return Err(DecodeError::WrongSize {
                found: bytes.len(),
                expected: layout.size,
            });
        }
        let (head, ranges) = bytes.split_at(layout.first_range);
        let mut request = Self {
            flags: u32_at(head, 0),
            ..Self::default()
        };
        for (range, bytes) in request
            .ranges
            .iter_mut()
            .zip(ranges.chunks_exact(layout.range))
        {
            let low = u32_at(bytes, layout.bitmap);
            let high = match width {
                CallerWidth::Bits64 => u32_at(bytes, layout.bitmap + 4),
                CallerWidth::Bits32 => 0,
            };
            *range = RangeRequest {
                flags: u32_at(bytes, 0),
                nmsrs: u32_at(bytes, NMSRS),
                base: u32_at(bytes, BASE),
                bitmap: UserAddress::new(u64::from(high) << 32 | u64::from(low)),
            };
        }
        Ok(request)
    }

    /// Encodes the struct as [`CallerWidth::struct_size`] bytes, with padding 0.
    ///
    /// # Errors
    /// [`EncodeError::PointerTooWide`] if a bitmap, even of an unused range, lies above 4 GiB and
    /// the caller is 32-bit.
    pub fn encode(&self, width: CallerWidth) -> Result<Vec<u8>, EncodeError> {
        let layout = width.layout();
        let mut bytes = Vec::with_capacity(layout.size);
        bytes.extend(self.flags.to_le_bytes());
        bytes.resize(layout.first_range, 0);
        for (slot, range) in self.slots() {
            let start = bytes.len();
            for field in [range.flags, range.nmsrs, range.base] {
                bytes.extend(field.to_le_bytes());
            }
            bytes.resize(start + layout.bitmap, 0);
            let bitmap = range.bitmap;
            match width {
                CallerWidth::Bits64 => bytes.extend(bitmap.get().to_le_bytes()),
                CallerWidth::Bits32 => {
                    let pointer = u32::try_from(bitmap.get())
                        .map_err(|_| EncodeError::PointerTooWide { slot, bitmap })?;
                    bytes.extend(pointer.to_le_bytes());
                }
            }
        }
        Ok(bytes)
    }

    /// Creates the request that sets `filter`, and the bytes of its bitmaps: at most 24 KiB, for
    /// the caller to put at the address `bitmaps_at`. The bitmaps follow one another, each in whole
    /// words.
    ///
    /// If the bytes would reach past 2^64, the addresses wrap, and no memory can hold the bytes.
    #[must_use]
    pub fn of(filter: &Filter, bitmaps_at: UserAddress) -> (Self, Vec<u8>) {
        let mut bitmaps = Vec::new();
        let request = Self::with_bitmaps(filter, |range| {
            let offset = bitmaps.len() as u64;
            let words = range.bitmap().words().iter();
            bitmaps.extend(words.flat_map(|word| word.to_le_bytes()));
            UserAddress::new(bitmaps_at.get().wrapping_add(offset))
        });
        (request, bitmaps)
    }
}

/// Returns the little-endian 32-bit word of `bytes` at `offset`, or 0 past the end of `bytes`.
fn u32_at(bytes: &[u8], offset: usize) -> u32 {
    bytes
        .get(offset..)
        .and_then(<[u8]>::first_chunk)
        .map_or(0, |field| u32::from_le_bytes(*field))
}

#[cfg(test)]
mod tests;
