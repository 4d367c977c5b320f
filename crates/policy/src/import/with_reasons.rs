//! The filter that a file holds, for all formats of compiled filters.

use msrgate_filter::{Accesses, Bitmap, Filter, MsrIndex, Range};

/// A filter, with the processor that its file names.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct CompiledFilter {
    /// The filter that the file holds.
    pub filter: Filter,
    /// The processor that the filter was compiled for, as [`emit`](crate::emit) names it: any
    /// text. `None` if the file names no processor.
    pub made_for: Option<String>,
}

/// A filter, with the reasons for which KVM is to exit to user space, if the file states them.
pub(super) struct Compiled {
    pub(super) filter: Filter,
    pub(super) made_for: Option<String>,
    pub(super) reasons: Option<Vec<String>>,
}

/// Returns a range of `count` MSRs whose bitmap is `bytes`. If a value is wrong, returns the key of
/// the value, and the reason.
pub(super) fn range_of(
    accesses: Accesses,
    base: MsrIndex,
    count: u32,
    bytes: &[u8],
) -> Result<Range, (&'static str, String)> {
    let words = Bitmap::words_for(count).map_err(|error| ("count", error.to_string()))?;
    // The bytes may fill whole words, as the kernel reads them, or end with the last byte that an
    // MSR uses.
    let least = count.div_ceil(8) as usize;
    if bytes.len() < least || bytes.len() > words * 8 {
        let given = bytes.len();
        let why =
            format!("its length in bytes is {given}, but must be {least} for a count of {count}");
        return Err(("bitmap", why));
    }
    let bit = |offset: u32| bytes[(offset / 8) as usize] >> (offset % 8) & 1 == 1;
    let bitmap = Bitmap::from_fn(count, bit).map_err(|error| ("count", error.to_string()))?;
    Ok(Range::new(accesses, base, bitmap))
}
