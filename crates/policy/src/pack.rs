//! From verdicts to the fewest ranges of a filter.
//!
//! An access whose answer is not the default has to lie in a range. A range is a *window* of at
//! most 0x3000 MSRs in one of three colours: `R` and `W` speak of one direction, `RW` of both with
//! one bitmap. The filter tries the `R` and `W` windows first, with exact bits; an `RW` bit then
//! decides whatever direction is still open. So an MSR that needs
//!
//! - a read (only its reads differ from the default) is satisfied by `R`, or by `W` and `RW`;
//! - a write, by `W`, or by `R` and `RW`;
//! - both, by `RW`, or by `R` and `W`:
//!
//! its own colour, or both others.
//!
//! A scan upwards keeps every state that may still win: how far each colour reaches, and how many
//! windows that took. A window may always begin at the first MSR that needs it: one that begins
//! earlier covers less above. A state that reaches no further than another in any colour, with no
//! fewer windows, is dropped.

use std::fmt;

use msrgate_filter::{
    Access, Accesses, Bitmap, Fallback, Filter, MAX_RANGES, MsrIndex, Range, Revision, Verdict,
};

use crate::msrs::MsrRange;
use crate::verdicts::Verdicts;

mod need;
mod scan;

use need::needs;

/// The directions a window speaks of: a range's accesses, as the packer sees them.
pub type Colour = Accesses;

/// One range of a packed filter, before it has bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// What it speaks of.
    pub colour: Colour,
    /// The MSRs, at most 0x3000.
    pub msrs: MsrRange,
}

/// A table that no filter expresses.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum PackError {
    /// It takes more ranges than a filter has. These are the fewest.
    TooManyRanges(Vec<Window>),
    /// MSR 0xffffffff is to have another answer than the default; no range reaches it (S3.5).
    LastMsr,
}

impl fmt::Display for PackError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooManyRanges(windows) => write!(
                f,
                "the policy needs at least {} ranges of at most {:#x} MSRs, and KVM has {MAX_RANGES}",
                windows.len(),
                Bitmap::MAX_COUNT,
            ),
            Self::LastMsr => f.write_str("MSR 0xffffffff obeys only the default"),
        }
    }
}

impl std::error::Error for PackError {}

/// The filter that decides as these say, in the fewest ranges.
pub(crate) fn pack(verdicts: &Verdicts) -> Result<Filter, PackError> {
    let default = verdicts.default();
    if Access::ALL
        .iter()
        .any(|&access| verdicts.at(MsrIndex::MAX, access) != Some(default))
    {
        return Err(PackError::LastMsr);
    }
    let needs = needs(verdicts);
    let mut windows = scan::fewest_windows(&needs);
    for window in &mut windows {
        need::trim(window, &needs);
    }
    // One that no MSR needs keeps the kernel from taking "deny everything" for a mistake (S2.3).
    if windows.is_empty() && default == Verdict::Deny {
        windows.push(Window {
            colour: Accesses::Both,
            msrs: MsrRange::one(MsrIndex::MIN),
        });
    }
    windows.sort_by_key(|window| (window.colour == Accesses::Both, window.msrs.first()));
    let fallback = Fallback::from(default);
    if windows.len() > MAX_RANGES {
        return Err(PackError::TooManyRanges(windows));
    }
    let ranges = windows
        .iter()
        .filter_map(|&window| range(verdicts, &windows, window))
        .collect();
    Filter::new(Revision::Mainline, fallback, ranges).map_err(|_| PackError::TooManyRanges(windows))
}

/// A window with its bits.
fn range(verdicts: &Verdicts, windows: &[Window], window: Window) -> Option<Range> {
    let count = u32::try_from(window.msrs.count()).ok()?;
    let allowed = Access::ALL.map(|access| {
        // x2APIC registers have no bits of their own: what a range says of them is never asked.
        let allowed = verdicts
            .of(access)
            .iter()
            .filter(|stretch| stretch.verdict == Some(Verdict::Allow))
            .map(|stretch| stretch.msrs);
        paint(window.msrs, count, allowed)
    });
    let of_reads = windows.iter().filter(|one| one.colour == Accesses::Read);
    let read_is_decided = paint(window.msrs, count, of_reads.map(|one| one.msrs));
    let bit = |at: usize| match window.colour {
        Accesses::Write => allowed[1][at],
        Accesses::Both if read_is_decided[at] => allowed[1][at],
        Accesses::Read | Accesses::Both => allowed[0][at],
    };
    let bitmap = Bitmap::from_fn(count, |offset| bit(offset as usize)).ok()?;
    Some(Range::new(window.colour, window.msrs.first(), bitmap))
}

/// Which of the `count` MSRs of `canvas` lie in one of these.
fn paint(canvas: MsrRange, count: u32, msrs: impl Iterator<Item = MsrRange>) -> Vec<bool> {
    let mut painted = vec![false; count as usize];
    let base = canvas.first().get();
    for one in msrs.filter(|one| one.overlaps(canvas)) {
        let first = one.first().max(canvas.first()).get() - base;
        let last = one.last().min(canvas.last()).get() - base;
        painted[first as usize..=last as usize].fill(true);
    }
    painted
}

#[cfg(test)]
mod tests;
