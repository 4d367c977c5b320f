//! Which MSRs have to lie in a window.

use msrgate_filter::{Access, Accesses};

use super::Window;
use crate::msrs::MsrRange;
use crate::verdicts::Verdicts;

/// Consecutive MSRs whose answers differ from the default in the same directions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Need {
    pub(super) accesses: Accesses,
    pub(super) msrs: MsrRange,
}

/// All needs, in order. x2APIC registers have none: no filter is asked of them (S3.1).
pub(super) fn needs(verdicts: &Verdicts) -> Vec<Need> {
    let [reads, writes] = Access::ALL.map(|access| verdicts.of(access));
    let (mut read, mut write) = (0, 0);
    let mut needs: Vec<Need> = Vec::new();
    while let (Some(r), Some(w)) = (reads.get(read), writes.get(write)) {
        let first = r.msrs.first().max(w.msrs.first());
        let last = r.msrs.last().min(w.msrs.last());
        let differs = [r, w].map(|one| verdicts.differs(one));
        let accesses = match differs {
            [true, true] => Some(Accesses::Both),
            [true, false] => Some(Accesses::Read),
            [false, true] => Some(Accesses::Write),
            [false, false] => None,
        };
        if let (Some(accesses), Some(msrs)) = (accesses, MsrRange::new(first, last)) {
            push(&mut needs, Need { accesses, msrs });
        }
        read += usize::from(r.msrs.last() == last);
        write += usize::from(w.msrs.last() == last);
    }
    needs
}

/// Adds a need, as part of the last one where it goes on with it.
fn push(needs: &mut Vec<Need>, need: Need) {
    if let Some(last) = needs.last_mut()
        && last.accesses == need.accesses
        && last.msrs.last().get().checked_add(1) == Some(need.msrs.first().get())
        && let Some(joined) = MsrRange::new(last.msrs.first(), need.msrs.last())
    {
        last.msrs = joined;
    } else {
        needs.push(need);
    }
}

/// Cuts what lies above the last need off a window.
pub(super) fn trim(window: &mut Window, needs: &[Need]) {
    let below = needs.partition_point(|need| need.msrs.first() <= window.msrs.last());
    if let Some(last) = needs[..below].last() {
        let end = last.msrs.last().min(window.msrs.last());
        if let Some(trimmed) = MsrRange::new(window.msrs.first(), end) {
            window.msrs = trimmed;
        }
    }
}
