//! The filters that a gate sets in the kernel for a program.

use msrgate_filter::{Access, Accesses, Bitmap, DefaultAction, Filter, MsrIndex, Range, Revision};
use msrgate_program::answer::Responder;
use msrgate_program::{CompileError, PackError};

use super::beside::Beside;
use super::pass_requests::Wanted;

/// Returns the filter that is set when a program comes into force. This filter still denies each access that
/// the program logs once and then lets through.
pub(super) fn first_filter(responder: &Responder, beside: &Beside) -> Result<Filter, CompileError> {
    filter_opened_for(responder, beside, &[])
}

/// Returns the program's filter combined with the VMM's own filter. The result allows the first accesses in
/// `opened`, if they fit into one filter.
pub(super) fn filter_opened_for(
    responder: &Responder,
    beside: &Beside,
    opened: &[Single],
) -> Result<Filter, CompileError> {
    if responder.is_traced() {
        match beside.pack(&responder.verdicts(opened)) {
            // If the filter does not fit, use the filter that allows no access, which always fits. The
            // publisher then opens that filter for the accesses for which vCPUs wait.
            Err(CompileError::Pack(_)) => beside.pack(&responder.fewest_verdicts(&[])),
            packed => packed,
        }
    } else if beside.filter.is_some() {
        beside.pack(&responder.verdicts(&[]))
    } else {
        Ok(responder.variant().filter().clone())
    }
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

/// Returns the widest filter that fits into the ranges of a KVM filter, and those of the requested accesses
/// that this filter allows.
pub(super) fn fitting(
    responder: &Responder,
    beside: &Beside,
    wanted: &Wanted,
) -> Option<(Filter, Vec<Single>)> {
    for opened in [&wanted.all, &wanted.waiting] {
        if let Ok(filter) = beside.pack(&responder.verdicts(opened)) {
            return Some((filter, opened.clone()));
        }
    }
    // A filter for at most sixteen single MSRs always fits.
    let few: Vec<_> = wanted.waiting.iter().copied().take(16).collect();
    let filter = beside.pack(&responder.fewest_verdicts(&few)).ok()?;
    Some((filter, few))
}
