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

use alloc::vec;
use alloc::vec::Vec;
use core::fmt;

use msrgate_filter::{
    Access, Accesses, Bitmap, DefaultAction, Filter, MAX_RANGES, MsrIndex, Range, Revision, Verdict,
};

use crate::msrs::MsrRange;

pub(crate) mod equality;
mod need;
mod scan;
mod verdicts;
mod window;

pub use verdicts::Verdicts;
pub use window::{Colour, Window};

use need::needs;

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

impl core::error::Error for PackError {}

/// The reason why rules became no filter.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum CompileError {
    /// No filter can express it.
    Pack(PackError),
    /// The filter that was made is not what the policy says: a defect of this program, found by
    /// its check of all accesses. Nothing was installed.
    Differs {
        /// An MSR on which they differ.
        index: MsrIndex,
        /// In this direction.
        access: Access,
        /// What the policy says.
        wanted: Verdict,
    },
}

impl fmt::Display for CompileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pack(error) => fmt::Display::fmt(error, f),
            Self::Differs {
                index,
                access,
                wanted,
            } => write!(
                f,
                "a {access} of {index} is not decided as the policy says ({wanted:?}); this is a defect of msrgate, please report it with the policy"
            ),
        }
    }
}

impl core::error::Error for CompileError {}

impl Verdicts {
    /// The filter that decides as these say, in the fewest ranges, compared with them over all 2^32
    /// MSRs in both directions.
    ///
    /// # Errors
    /// They do not fit a filter, or the comparison failed.
    pub fn pack(&self) -> Result<Filter, CompileError> {
        let filter = pack(self).map_err(CompileError::Pack)?;
        match self.first_difference(&filter) {
            None => Ok(filter),
            Some((index, access, wanted)) => Err(CompileError::Differs {
                index,
                access,
                wanted,
            }),
        }
    }
}

/// The filter that decides as these say, in the fewest ranges.
fn pack(verdicts: &Verdicts) -> Result<Filter, PackError> {
    let default = verdicts.default();
    let last = |access| *verdicts.of(access).at(MsrIndex::MAX);
    if Access::ALL
        .iter()
        .any(|&access| last(access) != Some(default))
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
    let default_action = DefaultAction::from(default);
    if windows.len() > MAX_RANGES {
        return Err(PackError::TooManyRanges(windows));
    }
    let ranges = windows
        .iter()
        .filter_map(|&window| range(verdicts, &windows, window))
        .collect();
    Filter::new(Revision::Mainline, default_action, ranges)
        .map_err(|_| PackError::TooManyRanges(windows))
}

/// A window with its bits.
fn range(verdicts: &Verdicts, windows: &[Window], window: Window) -> Option<Range> {
    let count = u32::try_from(window.msrs.count()).ok()?;
    let allowed = Access::ALL.map(|access| {
        // x2APIC registers have no bits of their own: what a range says of them is never asked.
        let allowed = verdicts
            .of(access)
            .iter()
            .filter(|(_, verdict)| **verdict == Some(Verdict::Allow))
            .map(|(msrs, _)| msrs);
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
