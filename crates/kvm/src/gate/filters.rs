//! The filters of a program that a gate puts into the kernel.

use msrgate_filter::{
    Access, Accesses, Bitmap, DefaultAction, Filter, MsrIndex, Range, ReasonMask, Revision,
};
use msrgate_program::answer::Responder;
use msrgate_program::{CompileError, PackError};

use super::pass_requests::Wanted;

/// What a program's filter is at first, and its mask.
pub(super) fn first_filter(responder: &Responder) -> Result<(Filter, ReasonMask), CompileError> {
    let reasons = responder.variant().reasons();
    let filter = if responder.is_traced() {
        match responder.verdicts(&[]).pack() {
            // There is always the narrowest: it opens for what is waited for.
            Err(CompileError::Pack(_)) => responder.fewest_verdicts(&[]).pack()?,
            packed => packed?,
        }
    } else {
        responder.variant().filter().clone()
    };
    Ok((filter, reasons))
}

/// A filter that refuses everything. One range that allows nothing: S2.3.
pub(super) fn deny_all() -> Result<Filter, CompileError> {
    let too_many = |_| CompileError::Pack(PackError::TooManyRanges(Vec::new()));
    let bitmap = Bitmap::from_fn(1, |_| false).map_err(too_many)?;
    let range = Range::new(Accesses::Both, MsrIndex::MIN, bitmap);
    Filter::new(Revision::Mainline, DefaultAction::Deny, vec![range])
        .map_err(|_| CompileError::Pack(PackError::TooManyRanges(Vec::new())))
}

type Single = (MsrIndex, Access);

/// The widest of the filters that fit, and what it is open for.
pub(super) fn fitting(responder: &Responder, wanted: &Wanted) -> Option<(Filter, Vec<Single>)> {
    for opened in [&wanted.all, &wanted.waiting] {
        if let Ok(filter) = responder.verdicts(opened).pack() {
            return Some((filter, opened.clone()));
        }
    }
    // Sixteen single MSRs fit whatever they are.
    let few: Vec<_> = wanted.waiting.iter().copied().take(16).collect();
    let filter = responder.fewest_verdicts(&few).pack().ok()?;
    Some((filter, few))
}
