//! The wanted verdicts for each of 2^32 MSRs in each direction. The packer makes a filter from
//! these verdicts, and the finished filter is compared with them.

use alloc::vec::Vec;

use msrgate_filter::{Access, Filter, MsrIndex, Verdict};

use super::equality;
use crate::msrs::MsrRange;
use crate::range_map::{RangeMap, RangeMapBuilder};

/// The wanted verdict of a filter on each access, and the filter's default action.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdicts {
    /// The wanted verdicts for reads and for writes. `None` stands for x2APIC registers, for which the
    /// kernel does not ask the filter (S3.1).
    by_access: [RangeMap<Option<Verdict>>; 2],
    default: Verdict,
}

impl Verdicts {
    /// Creates the wanted verdicts. For each direction, `of` returns the verdicts on all MSRs in
    /// order and without gaps, with `None` for x2APIC registers. `default` is the default action of
    /// the filter to make.
    pub(crate) fn new<I>(default: Verdict, of: impl Fn(Access) -> I) -> Self
    where
        I: Iterator<Item = (MsrRange, Option<Verdict>)>,
    {
        let map = |access| {
            let mut map = RangeMapBuilder::default();
            of(access).for_each(|(msrs, verdict)| map.join(msrs.last(), verdict));
            map.finish(Some(default))
        };
        Self {
            by_access: Access::ALL.map(map),
            default,
        }
    }

    /// Returns the verdicts that remain if another filter has to allow an access too: an access is
    /// allowed only if these verdicts and `other` allow it.
    #[must_use]
    pub fn under(&self, other: &Filter) -> Self {
        let both = |one, other| match (one, other) {
            (Verdict::Allow, Verdict::Allow) => Verdict::Allow,
            _ => Verdict::Deny,
        };
        let default = both(self.default, other.default_action().verdict());
        Self::new(default, |access| {
            let theirs = stretches(other, access);
            let zipped: Vec<_> = self
                .of(access)
                .zip(&theirs)
                .map(|(msrs, own, their)| (msrs, own.map(|own| both(own, *their))))
                .collect();
            zipped.into_iter()
        })
    }

    /// The wanted verdicts on accesses of one direction.
    pub(crate) const fn of(&self, access: Access) -> &RangeMap<Option<Verdict>> {
        &self.by_access[access as usize]
    }

    /// The filter's verdict on accesses that no range covers.
    pub(crate) const fn default(&self) -> Verdict {
        self.default
    }

    /// Returns true if the wanted verdict differs from the filter's default action.
    pub(crate) fn differs(&self, wanted: Option<Verdict>) -> bool {
        wanted.is_some_and(|verdict| verdict != self.default)
    }

    /// Returns the first access on which `filter` differs from the wanted verdict, with that
    /// verdict.
    #[must_use]
    pub fn first_difference(&self, filter: &Filter) -> Option<(MsrIndex, Access, Verdict)> {
        let of = |access| {
            let ranges = self.of(access).iter();
            ranges.filter_map(move |(msrs, verdict)| Some((msrs, access, (*verdict)?)))
        };
        equality::first_difference(Access::ALL.into_iter().flat_map(of), filter)
    }
}

/// Returns the verdicts of a filter for all MSRs in one direction.
fn stretches(filter: &Filter, access: Access) -> RangeMap<Verdict> {
    let mut map = RangeMapBuilder::default();
    // All MSRs between two neighbouring edges lie in the same ranges, or outside all ranges.
    let mut edges: Vec<u64> = filter
        .ranges()
        .iter()
        .flat_map(|range| {
            let base = u64::from(range.base().get());
            [base, base + u64::from(range.bitmap().count())]
        })
        .chain([0, 1 << u32::BITS])
        .collect();
    edges.sort_unstable();
    edges.dedup();
    for pair in edges.windows(2) {
        let &[from, to] = pair else { continue };
        let Some(msrs) = MsrRange::below(from, to) else {
            continue;
        };
        let is_inside = filter.ranges().iter().any(|range| {
            let offset = msrs.first().get().checked_sub(range.base().get());
            offset.is_some_and(|offset| offset < range.bitmap().count())
        });
        let singles = if is_inside {
            msrs.first().get()..msrs.last().get()
        } else {
            0..0
        };
        for index in singles.map(MsrIndex::new) {
            map.join(index, filter.decide(index, access).verdict);
        }
        let last = msrs.last();
        map.join(last, filter.decide(last, access).verdict);
    }
    map.finish(filter.default_action().verdict())
}

#[cfg(test)]
mod tests {
    use msrgate_filter::{Accesses, Bitmap, DefaultAction, Range, Revision};

    use super::*;

    /// The result of `under` allows an access only if the verdicts and the other filter allow it. The
    /// test tries the MSRs below 0x60, where all ranges lie, and the two highest MSRs.
    #[test]
    fn verdicts_combined_with_other_filter_allow_only_accesses_that_both_allow() {
        let range = |accesses, base, bits: &[bool]| {
            let count = u32::try_from(bits.len()).unwrap();
            let bitmap = Bitmap::from_fn(count, |at| bits[at as usize]).unwrap();
            Range::new(accesses, MsrIndex::new(base), bitmap)
        };
        let filter = |default_action, ranges| {
            Filter::new(Revision::Mainline, default_action, ranges).unwrap()
        };
        let own = filter(
            DefaultAction::Deny,
            alloc::vec![range(Accesses::Both, 0x30, &[true; 16])],
        );
        let theirs = [
            filter(
                DefaultAction::Allow,
                alloc::vec![range(Accesses::Read, 0x35, &[false, true, false])],
            ),
            filter(
                DefaultAction::Deny,
                alloc::vec![range(
                    Accesses::Write,
                    0x2e,
                    &[true, false, true, true, false]
                )],
            ),
            filter(DefaultAction::Allow, Vec::new()),
        ];
        let verdicts = Verdicts::new(Verdict::Deny, |access| {
            let map = stretches(&own, access);
            let all: Vec<_> = map
                .iter()
                .map(|(msrs, verdict)| (msrs, Some(*verdict)))
                .collect();
            all.into_iter()
        });
        for other in &theirs {
            let both = verdicts.under(other);
            for access in Access::ALL {
                for index in (0..0x60).chain([u32::MAX - 1, u32::MAX]).map(MsrIndex::new) {
                    let allows =
                        |filter: &Filter| filter.decide(index, access).verdict == Verdict::Allow;
                    let wanted = allows(&own) && allows(other);
                    let is = *both.of(access).at(index) == Some(Verdict::Allow);
                    assert_eq!(is, wanted, "{access} of {index} under {other:?}");
                }
            }
            assert_eq!(both.first_difference(&both.pack().unwrap()), None);
        }
    }
}
