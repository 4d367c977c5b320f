//! The comparison of a filter with the wanted verdicts, over all 2^32 MSRs in both directions.

use alloc::vec::Vec;
use msrgate_filter::{Access, Filter, MsrIndex, Verdict};

use crate::msrs::MsrRange;

/// Returns the first access on which the filter differs from the wanted verdict.
///
/// The function tries every MSR within the filter's ranges, at most 16 times 0x3000 MSRs. Outside
/// the ranges the filter has only one verdict, so there it is enough to try one MSR of each stretch
/// of consecutive MSRs with the same wanted verdict.
pub(crate) fn first_difference(
    wanted: impl Iterator<Item = (MsrRange, Access, Verdict)>,
    filter: &Filter,
) -> Option<(MsrIndex, Access, Verdict)> {
    let covered = covered(filter);
    for (msrs, access, verdict) in wanted {
        let differs = |&index: &MsrIndex| filter.decide(index, access).verdict != verdict;
        if let Some(index) = points(msrs, &covered).find(differs) {
            return Some((index, access, verdict));
        }
    }
    None
}

/// Returns the MSRs that some range contains, as ranges that ascend and do not overlap.
pub(crate) fn covered(filter: &Filter) -> Vec<MsrRange> {
    let mut ranges: Vec<_> = filter
        .ranges()
        .iter()
        .filter_map(|range| {
            let last = MsrIndex::new(range.end()?.get() - 1);
            MsrRange::new(range.base(), last)
        })
        .collect();
    ranges.sort_by_key(|range| range.first());
    let mut apart: Vec<MsrRange> = Vec::new();
    for range in ranges {
        match apart.last_mut() {
            Some(before) if before.last() >= range.first() => {
                let last = before.last().max(range.last());
                *before = MsrRange::new(before.first(), last).unwrap_or(*before);
            }
            _ => apart.push(range),
        }
    }
    apart
}

/// Iterates over every MSR of `msrs` that a range in `covered` contains, and over at least one MSR
/// of each gap between these ranges.
pub(crate) fn points(msrs: MsrRange, covered: &[MsrRange]) -> impl Iterator<Item = MsrIndex> {
    let first = covered.partition_point(|range| range.last() < msrs.first());
    let within = covered[first..]
        .iter()
        .take_while(move |range| range.first() <= msrs.last());
    let inside = within.clone().flat_map(move |range| {
        let (first, last) = (
            range.first().max(msrs.first()),
            range.last().min(msrs.last()),
        );
        (first.get()..=last.get()).map(MsrIndex::new)
    });
    let outside = within
        .filter_map(|range| range.last().get().checked_add(1).map(MsrIndex::new))
        .filter(move |&index| msrs.contains(index))
        .chain([msrs.first(), msrs.last()]);
    inside.chain(outside)
}
