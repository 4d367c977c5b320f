//! What a filter has to say of each of 2^32 MSRs in each direction: what is packed, and what the
//! packed filter is compared with.

use msrgate_filter::{Access, Filter, MsrIndex, Verdict};

use super::equality;
use crate::msrs::MsrRange;
use crate::range_map::{RangeMap, RangeMapBuilder};

/// What a filter has to say of each access, and its default.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdicts {
    /// `None` where nothing asks the filter: x2APIC registers (S3.1).
    by_access: [RangeMap<Option<Verdict>>; 2],
    default: Verdict,
}

impl Verdicts {
    /// What these say, which cover the MSRs of their direction in order and without a gap; `None` is for
    /// x2APIC. `default` is that of the filter that is to be made.
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

    /// What it has to say of one direction.
    pub(crate) const fn of(&self, access: Access) -> &RangeMap<Option<Verdict>> {
        &self.by_access[access as usize]
    }

    /// What the filter is to say where no range does.
    pub(crate) const fn default(&self) -> Verdict {
        self.default
    }

    /// Whether what is wanted of one access is other than the default.
    pub(crate) fn differs(&self, wanted: Option<Verdict>) -> bool {
        wanted.is_some_and(|verdict| verdict != self.default)
    }

    /// The first access that `filter` does not decide as wanted.
    #[must_use]
    pub fn first_difference(&self, filter: &Filter) -> Option<(MsrIndex, Access, Verdict)> {
        let of = |access| {
            let ranges = self.of(access).iter();
            ranges.filter_map(move |(msrs, verdict)| Some((msrs, access, (*verdict)?)))
        };
        equality::first_difference(Access::ALL.into_iter().flat_map(of), filter)
    }
}
