//! The packer, which makes the filter with the fewest ranges from the wanted verdicts on all
//! accesses.
//!
//! An access whose verdict is not the default has to lie in a range. A range is a *window* of at
//! most 0x3000 MSRs with one of three colours: `R` and `W` cover one direction, `RW` covers both
//! with one bitmap. The filter tries the `R` and `W` windows first, with exact bits. A bit of an
//! `RW` window then decides the directions in which no `R` or `W` window contains the MSR. An MSR
//! has a need if its verdict differs from the default in some direction. The need is satisfied by
//! windows of its own colour, or of both other colours:
//!
//! - if only the verdict on reads differs from the default, by `R`, or by `W` and `RW`;
//! - if only the verdict on writes differs, by `W`, or by `R` and `RW`;
//! - if both differ, by `RW`, or by `R` and `W`.
//!
//! A scan from the lowest MSR upwards keeps every state that may still lead to the fewest ranges. A
//! state consists of the last MSR that each colour reaches, and the number of windows so far. A
//! window may always begin at the first MSR that needs it, because a window that begins earlier
//! covers less above. The scan drops a state if another state reaches as far in every colour with
//! no more windows.

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

/// An error for verdicts that no filter can express.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum PackError {
    /// The verdicts need more ranges than a filter can have. The windows in the error are the
    /// fewest ranges that would be enough.
    TooManyRanges(Vec<Window>),
    /// The verdict on MSR 0xffffffff differs from the default. No range can contain that MSR
    /// (S3.5).
    LastMsr,
}

impl fmt::Display for PackError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooManyRanges(windows) => write!(
                f,
                "the policy needs at least {} ranges of at most {:#x} MSRs, but a filter of KVM has only {MAX_RANGES}",
                windows.len(),
                Bitmap::MAX_COUNT,
            ),
            Self::LastMsr => f.write_str("MSR 0xffffffff must have the default action, because no range of a filter reaches it (S3.5)"),
        }
    }
}

impl core::error::Error for PackError {}

/// The reason why rules could not be compiled into a filter.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum CompileError {
    /// No filter can express the rules.
    Pack(PackError),
    /// The filter differs from the policy. This is a defect of msrgate, found by the comparison of
    /// the filter with the policy over all accesses. No filter was set in the kernel.
    Differs {
        /// An MSR on which the filter and the policy differ.
        index: MsrIndex,
        /// The direction of the access on which the filter and the policy differ.
        access: Access,
        /// The verdict that the policy has for the access.
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
                "the filter does not decide a {access} of {index} as the policy says ({wanted:?}); this is a defect of msrgate, so please report it with the policy"
            ),
        }
    }
}

impl core::error::Error for CompileError {}

impl Verdicts {
    /// Packs the verdicts into the filter with the fewest ranges, and compares the filter with the
    /// verdicts over all 2^32 MSRs in both directions.
    ///
    /// # Errors
    /// - [`CompileError::Pack`]: the verdicts do not fit a filter.
    /// - [`CompileError::Differs`]: the filter differs from the verdicts.
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

/// Packs the verdicts into the filter with the fewest ranges.
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
    // The kernel refuses default deny without ranges (S2.3), so the filter gets a range that no MSR
    // needs.
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

/// Returns the filter's range for a window: the window's MSRs, with a bit for each that says whether
/// the access is allowed.
fn range(verdicts: &Verdicts, windows: &[Window], window: Window) -> Option<Range> {
    let count = u32::try_from(window.msrs.count()).ok()?;
    let allowed = Access::ALL.map(|access| {
        // x2APIC registers get a 0 bit: the kernel never reads a filter's bit for an x2APIC
        // register.
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

/// Returns, for each of the `count` MSRs of `canvas`, true if a range in `msrs` contains the MSR.
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
