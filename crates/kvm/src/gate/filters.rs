//! The filters that a gate sets in the kernel for a program.

use msrgate_filter::{
    Access, Accesses, Bitmap, DefaultAction, Filter, MsrIndex, Range, ReasonMask, Revision,
};
use msrgate_program::answer::Responder;
use msrgate_program::{CompileError, PackError};

use super::pass_requests::Wanted;

/// Returns the filter with which a program starts, and its mask of exit reasons.
pub(super) fn first_filter(responder: &Responder) -> Result<(Filter, ReasonMask), CompileError> {
    let reasons = responder.variant().reasons();
    let filter = if responder.is_traced() {
        match responder.verdicts(&[]).pack() {
            // The narrowest filter always fits: it is opened for accesses as vCPUs wait for them.
            Err(CompileError::Pack(_)) => responder.fewest_verdicts(&[]).pack()?,
            packed => packed?,
        }
    } else {
        responder.variant().filter().clone()
    };
    Ok((filter, reasons))
}

/// Returns a filter that refuses every access: it has one range that allows nothing (S2.3).
pub(super) fn deny_all() -> Result<Filter, CompileError> {
    let too_many = |_| CompileError::Pack(PackError::TooManyRanges(Vec::new()));
    let bitmap = Bitmap::from_fn(1, |_| false).map_err(too_many)?;
    let range = Range::new(Accesses::Both, MsrIndex::MIN, bitmap);
    Filter::new(Revision::Mainline, DefaultAction::Deny, vec![range])
        .map_err(|_| CompileError::Pack(PackError::TooManyRanges(Vec::new())))
}

type Single = (MsrIndex, Access);

/// Returns the widest filter that fits, and the requested accesses that it allows.
pub(super) fn fitting(responder: &Responder, wanted: &Wanted) -> Option<(Filter, Vec<Single>)> {
    for opened in [&wanted.all, &wanted.waiting] {
        if let Ok(filter) = responder.verdicts(opened).pack() {
            return Some((filter, opened.clone()));
        }
    }
    // Any sixteen single MSRs fit.
    let few: Vec<_> = wanted.waiting.iter().copied().take(16).collect();
    let filter = responder.fewest_verdicts(&few).pack().ok()?;
    Some((filter, few))
}
