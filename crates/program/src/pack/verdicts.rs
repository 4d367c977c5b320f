//! The wanted verdicts for each of 2^32 MSRs in each direction. The packer packs them, and the
//! packed filter is compared with them.

use msrgate_filter::{Access, Filter, MsrIndex, Verdict};

use super::equality;
use crate::msrs::MsrRange;
use crate::range_map::{RangeMap, RangeMapBuilder};

/// The wanted verdict of a filter on each access, and the filter's default action.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdicts {
    /// The verdicts. `None` stands for x2APIC registers, for which the kernel does not ask the
    /// filter (S3.1).
    by_access: [RangeMap<Option<Verdict>>; 2],
    default: Verdict,
}

impl Verdicts {
    /// Creates verdicts. `of` iterates over the MSRs of a direction in order and without gaps, with
    /// `None` for x2APIC registers. `default` is the default of the filter to make.
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

    /// The verdicts of one direction.
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
