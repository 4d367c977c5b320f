//! Short constructors for the filters that the doctor sets to try statements.

use msrgate_filter::{DefaultAction, MsrIndex};

use crate::sys::raw::{RawBitmap, RawFilter, RawRange};

/// The bits of a range's `flags`: the range is for reads, for writes, or for both.
pub(super) const READ: u32 = 1;
pub(super) const WRITE: u32 = 2;
pub(super) const BOTH: u32 = READ | WRITE;

/// Returns a filter with these ranges; the other ranges of the struct are unused.
pub(super) fn filter<const N: usize>(default: DefaultAction, ranges: [RawRange; N]) -> RawFilter {
    let mut filter = RawFilter {
        flags: match default {
            DefaultAction::Allow => 0,
            DefaultAction::Deny => 1,
        },
        ..RawFilter::default()
    };
    for (place, range) in filter.ranges.iter_mut().zip(ranges) {
        *place = range;
    }
    filter
}

/// Returns a filter that denies everything. It has one range with a bit of 0, because the kernel refuses
/// default deny without ranges (S2.3).
pub(super) fn deny_all() -> RawFilter {
    filter(
        DefaultAction::Deny,
        [range(BOTH, MsrIndex::MIN, 1, |_| false)],
    )
}

/// Returns a filter that allows everything.
pub(super) fn allow_all() -> RawFilter {
    filter(
        DefaultAction::Allow,
        [range(BOTH, MsrIndex::MIN, 1, |_| true)],
    )
}

/// Returns a filter that allows reads and writes of these MSRs, and denies all other accesses.
pub(super) fn allow_only<const N: usize>(indices: [MsrIndex; N]) -> RawFilter {
    let ranges = indices.map(|index| range(BOTH, index, 1, |_| true));
    filter(DefaultAction::Deny, ranges)
}

/// Returns a range whose bitmap is whole 64-bit words, as the kernel reads it.
pub(super) fn range(
    flags: u32,
    base: MsrIndex,
    nmsrs: u32,
    allowed: impl Fn(u32) -> bool,
) -> RawRange {
    let bytes = nmsrs.next_multiple_of(64) / 8;
    let byte = |at: u32| (0..8).fold(0, |byte, bit| byte | u8::from(allowed(at * 8 + bit)) << bit);
    RawRange {
        flags,
        nmsrs,
        base: base.get(),
        bitmap: RawBitmap::Bytes((0..bytes).map(byte).collect()),
    }
}

/// Returns a range for reads and writes with this bitmap.
pub(super) fn with_bitmap(nmsrs: u32, bitmap: RawBitmap) -> RawRange {
    RawRange {
        flags: BOTH,
        nmsrs,
        base: 0,
        bitmap,
    }
}
