//! Finds the parts of a filter that decide nothing.

use msrgate_filter::{Access, Because, Filter, MsrIndex, Range, Verdict, X2APIC};
use msrgate_program::MsrRange;

/// Returns remarks on the bits of a filter that KVM never uses: those of x2APIC registers, and
/// those of MSRs that an earlier range decides otherwise.
pub(super) fn remarks(filter: &Filter) -> Vec<String> {
    let ranges = filter.ranges().iter().enumerate();
    ranges
        .flat_map(|(number, range)| of_range(filter, number, range))
        .collect()
}

fn of_range(filter: &Filter, number: usize, range: &Range) -> Vec<String> {
    let Some(end) = range.end() else {
        return vec![format!(
            "ranges[{number}] reaches 2^32, so KVM never uses this range (S3.5)"
        )];
    };
    let indices = || (range.base().get()..end.get()).map(MsrIndex::new);
    let bit = |index: MsrIndex| {
        if range.bitmap().allows(index.get() - range.base().get()) {
            Verdict::Allow
        } else {
            Verdict::Deny
        }
    };
    let mut remarks = Vec::new();
    let default = filter.default_action().verdict();
    let exempt = || indices().filter(|index| X2APIC.contains(index) && bit(*index) != default);
    // A range that only spans these registers has zeros for them: msrgate itself packs a policy so.
    let spans = range.base() < *X2APIC.start()
        && end.get() > X2APIC.end().get() + 1
        && exempt().all(|index| bit(index) == Verdict::Deny)
        && exempt().count() == 0x100;
    if let Some(msrs) = around(exempt()).filter(|_| !spans) {
        remarks.push(format!(
            "ranges[{number}]: the bits of {msrs} decide nothing, because KVM never filters x2APIC registers (S3.1)"
        ));
    }
    for verdict in [Verdict::Allow, Verdict::Deny] {
        let hidden = indices().filter(|&index| {
            let mut accesses = Access::ALL.into_iter();
            bit(index) == verdict
                && !X2APIC.contains(&index)
                && accesses.any(|access| is_hidden(filter, range, index, access, verdict))
        });
        if let Some(msrs) = around(hidden) {
            let (wanted, stays) = match verdict {
                Verdict::Allow => ("allows", "refused"),
                Verdict::Deny => ("refuses", "allowed"),
            };
            remarks.push(format!(
                "ranges[{number}] {wanted} MSRs in {msrs} that an earlier range decides otherwise: they stay {stays} (S3.3)"
            ));
        }
    }
    remarks
}

/// Returns true if an earlier range for the same directions decides the access otherwise than
/// `verdict`. An earlier range for other directions may be there on purpose: msrgate itself packs a
/// policy so.
fn is_hidden(
    filter: &Filter,
    range: &Range,
    index: MsrIndex,
    access: Access,
    verdict: Verdict,
) -> bool {
    let decision = filter.decide(index, access);
    let Because::Range(by) = decision.because else {
        return false;
    };
    let same = filter.ranges()[by.get()].accesses() == range.accesses();
    range.accesses().contain(access) && same && decision.verdict != verdict
}

/// Returns the range from the first to the last of these MSRs.
fn around(msrs: impl Iterator<Item = MsrIndex>) -> Option<MsrRange> {
    let mut msrs = msrs.fuse();
    let first = msrs.next()?;
    MsrRange::new(first, msrs.last().unwrap_or(first))
}
