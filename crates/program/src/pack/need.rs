//! The MSRs that have to lie in a window, that is, in a range of the filter to be made.

use alloc::vec::Vec;

use msrgate_filter::{Access, Accesses};

use super::verdicts::Verdicts;
use super::window::Window;
use crate::msrs::MsrRange;

/// Consecutive MSRs whose verdicts differ from the default action in the same directions: for reads, for
/// writes, or for both.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Need {
    pub(super) accesses: Accesses,
    pub(super) msrs: MsrRange,
}

/// Returns all stretches of MSRs that have to lie in a range of the filter, in the order of the MSRs. x2APIC
/// registers have no need, because the kernel does not ask the filter about them (S3.1).
pub(super) fn needs(verdicts: &Verdicts) -> Vec<Need> {
    let [reads, writes] = Access::ALL.map(|access| verdicts.of(access));
    let mut needs: Vec<Need> = Vec::new();
    for (msrs, read, write) in reads.zip(writes) {
        let accesses = match [read, write].map(|wanted| verdicts.differs(*wanted)) {
            [true, true] => Accesses::Both,
            [true, false] => Accesses::Read,
            [false, true] => Accesses::Write,
            [false, false] => continue,
        };
        push(&mut needs, Need { accesses, msrs });
    }
    needs
}

/// Appends `need` to the list, or extends the last need of the list if `need` continues it.
fn push(needs: &mut Vec<Need>, need: Need) {
    if let Some(last) = needs.last_mut()
        && last.accesses == need.accesses
        && let Some(joined) = last.msrs.joined(need.msrs)
    {
        last.msrs = joined;
    } else {
        needs.push(need);
    }
}

/// Shortens a window so that it ends at its last MSR that has a need: a verdict that differs from
/// the default.
pub(super) fn trim(window: &mut Window, needs: &[Need]) {
    let below = needs.partition_point(|need| need.msrs.first() <= window.msrs.last());
    if let Some(last) = needs[..below].last() {
        let end = last.msrs.last().min(window.msrs.last());
        if let Some(trimmed) = MsrRange::new(window.msrs.first(), end) {
            window.msrs = trimmed;
        }
    }
}
