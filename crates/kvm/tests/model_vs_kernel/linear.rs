//! The decision of a filter on an access, written as plainly as possible: a loop over the filter's ranges.

use msrgate_filter::{Access, MsrIndex, Verdict, X2APIC};
use msrgate_kvm::sys::{RawBitmap, RawFilter, RawRange};

/// Returns the verdict of a filter that the kernel has accepted (S3).
pub(crate) fn decide(filter: &RawFilter, index: MsrIndex, access: Access) -> Verdict {
    if X2APIC.contains(&index) {
        return Verdict::Allow;
    }
    let flag = 1 << access as u32;
    let first = filter
        .ranges
        .iter()
        .find(|range| range.flags & flag != 0 && contains(range, index));
    match (first, filter.flags) {
        (Some(range), _) => bit(range, index),
        (None, 0) => Verdict::Allow,
        (None, _) => Verdict::Deny,
    }
}

/// Returns true if the range contains `index`. The end of the range is computed with 32 bits, so it can wrap
/// around (S3.5).
fn contains(range: &RawRange, index: MsrIndex) -> bool {
    let end = range.base.wrapping_add(range.nmsrs);
    (range.base..end).contains(&index.get())
}

fn bit(range: &RawRange, index: MsrIndex) -> Verdict {
    let RawBitmap::Bytes(bytes) = &range.bitmap else {
        return Verdict::Deny;
    };
    let offset = index.get() - range.base;
    match bytes[(offset / 8) as usize] >> (offset % 8) & 1 {
        0 => Verdict::Deny,
        _ => Verdict::Allow,
    }
}
