//! The bytes of `KVM_X86_SET_MSR_FILTER`'s argument, as user space lays them out (S1.6, S1.7).
//!
//! Nothing here judges what the bytes ask for: that is [`SetCall`](crate::SetCall).

use alloc::vec::Vec;
use core::fmt;

use crate::filter::Filter;
use crate::msr::Accesses;
use crate::range::{DefaultAction, MAX_RANGES, Range};

/// `KVM_MSR_FILTER_DEFAULT_DENY`, the only known bit of [`Request::flags`]; 0 is the default that
/// allows.
pub const DEFAULT_DENY: u32 = 1 << 0;
/// `KVM_MSR_FILTER_READ`, a bit of [`RangeRequest::flags`].
pub const RANGE_READ: u32 = Accesses::Read.bits();
/// `KVM_MSR_FILTER_WRITE`, the other one.
pub const RANGE_WRITE: u32 = Accesses::Write.bits();

/// The size of a caller's pointers, on which the struct's layout depends (S1.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CallerWidth {
    /// A 64-bit process.
    Bits64,
    /// A 32-bit process on a 64-bit kernel.
    Bits32,
}

/// Where the fields of one layout are, in bytes.
struct Layout {
    size: usize,
    first_range: usize,
    range: usize,
    bitmap: usize,
}

const NMSRS: usize = 4;
const BASE: usize = 8;

impl CallerWidth {
    /// Both layouts.
    pub const ALL: [Self; 2] = [Self::Bits64, Self::Bits32];

    /// The request number that such a caller hands to `ioctl(2)`:
    /// `_IOW(0xAE, 0xc6, struct kvm_msr_filter)` with its own size of the struct.
    #[must_use]
    pub const fn ioctl_number(self) -> u32 {
        match self {
            Self::Bits64 => 0x4188_aec6,
            Self::Bits32 => 0x4104_aec6,
        }
    }

    /// `sizeof(struct kvm_msr_filter)` for such a caller, in bytes.
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

/// An address in the caller's memory. It need not be aligned, nor readable.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UserAddress(u64);

impl UserAddress {
    /// `NULL`.
    pub const NULL: Self = Self(0);

    /// The address with this number.
    #[must_use]
    pub const fn new(address: u64) -> Self {
        Self(address)
    }

    /// The number itself.
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

/// Some byte of what was to be read is not readable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault;

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("unreadable memory")
    }
}

impl core::error::Error for Fault {}

/// The memory of the process that makes the call.
pub trait UserMemory {
    /// Fills `into` with the bytes from `from` on.
    ///
    /// # Errors
    /// One of them cannot be read, or the last one would lie past the end of the address space.
    fn read(&self, from: UserAddress, into: &mut [u8]) -> Result<(), Fault>;
}

/// A stretch of readable memory with nothing readable around it.
#[derive(Clone, Copy, Debug)]
pub struct Segment<'a> {
    /// Where it begins.
    pub start: UserAddress,
    /// What it holds.
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

/// Several stretches. A read has to lie in one of them; the first that can serve it does.
impl UserMemory for [Segment<'_>] {
    fn read(&self, from: UserAddress, into: &mut [u8]) -> Result<(), Fault> {
        self.iter()
            .find_map(|segment| segment.read(from, into).ok())
            .ok_or(Fault)
    }
}

/// One of the struct's sixteen places for a range, counted from 0. A range that is skipped has one
/// too: this is not its [`RangeNumber`](crate::RangeNumber).
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

/// `struct kvm_msr_filter` as its bytes say it, not validated. `B` stands for a bitmap: its address, or
/// what a caller is about to put there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Request<B = UserAddress> {
    /// [`DEFAULT_DENY`] and unknown bits.
    pub flags: u32,
    /// The ranges; one without MSRs is unused.
    pub ranges: [RangeRequest<B>; MAX_RANGES],
}

/// `struct kvm_msr_filter_range` as its bytes say it, not validated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RangeRequest<B = UserAddress> {
    /// [`RANGE_READ`], [`RANGE_WRITE`] and unknown bits.
    pub flags: u32,
    /// How many MSRs the bitmap speaks of.
    pub nmsrs: u32,
    /// The first of them.
    pub base: u32,
    /// The bitmap, or its address: one bit an MSR, in whole little-endian words of 8 bytes (S2.4).
    pub bitmap: B,
}

/// Bytes that are not a `struct kvm_msr_filter` of this width.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum DecodeError {
    /// Too few or too many.
    WrongSize {
        /// How many there are.
        found: usize,
        /// How many the struct has.
        expected: usize,
    },
}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::WrongSize { found, expected } => {
                write!(f, "{found} bytes where the struct has {expected}")
            }
        }
    }
}

impl core::error::Error for DecodeError {}

/// A request that this caller cannot make.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum EncodeError {
    /// The bitmap of this slot lies above 4 GiB, where no pointer of a 32-bit caller reaches.
    PointerTooWide {
        /// The range.
        slot: Slot,
        /// Its bitmap.
        bitmap: UserAddress,
    },
}

impl fmt::Display for EncodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PointerTooWide { slot, bitmap } => write!(
                f,
                "range {slot}: the bitmap at {bitmap} is out of reach of a 32-bit pointer"
            ),
        }
    }
}

impl core::error::Error for EncodeError {}

impl<B> Request<B> {
    /// The ranges with the places they stand in.
    pub fn slots(&self) -> impl Iterator<Item = (Slot, &RangeRequest<B>)> {
        (0..).map(Slot).zip(&self.ranges)
    }

    /// The request that sets `filter`, with what stands for the bitmap of each range.
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

    /// The same request with something else in the place of each bitmap.
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
    /// What these bytes ask for. Padding is not looked at.
    ///
    /// # Errors
    /// They are not [`CallerWidth::struct_size`] bytes.
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

    /// The bytes of the struct, [`CallerWidth::struct_size`] of them, padding 0.
    ///
    /// # Errors
    /// A bitmap, be it of an unused range, lies where this caller's pointers do not reach.
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

    /// The request that sets `filter`, and all its bitmaps one after the other, each in whole
    /// words, to be put at `bitmaps_at`. At most 24 KiB.
    ///
    /// A blob that would not end below 2^64 gets addresses that wrap, which no memory can serve.
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

/// The little-endian word at `offset`, or 0 past the end.
fn u32_at(bytes: &[u8], offset: usize) -> u32 {
    bytes
        .get(offset..)
        .and_then(<[u8]>::first_chunk)
        .map_or(0, |field| u32::from_le_bytes(*field))
}

#[cfg(test)]
mod tests;
