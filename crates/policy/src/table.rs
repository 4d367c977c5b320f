//! What a policy says of each of 2^32 MSRs in each direction.

use std::collections::{BTreeSet, HashMap};

use msrgate_filter::{Access, MsrIndex, X2APIC};

use crate::action::Action;
use crate::msrs::MsrRange;
use crate::policy::{EntryId, Policy};
use crate::verdicts::Verdicts;

/// What decided an access in a [`Table`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Said {
    /// This entry.
    ByEntry(EntryId),
    /// The policy's `default`.
    ByDefault,
    /// Nothing in the policy: an x2APIC register, which KVM never filters (S3.1).
    ByKvm,
}

/// Consecutive MSRs of which the same thing says the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment<'t> {
    /// The MSRs.
    pub msrs: MsrRange,
    /// What happens to them.
    pub action: &'t Action,
    /// What says so.
    pub said: Said,
}

/// A resolved policy: for each direction, segments that cover all MSRs once, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    runs: [Box<[Run]>; 2],
    /// All there are, once each.
    actions: Vec<Action>,
    default: Action,
}

/// A [`Segment`] as it is kept: a policy of 100,000 entries may have 200,000 in each direction. It
/// begins where the one before it ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Run {
    last: MsrIndex,
    /// A place in [`Table::actions`].
    action: u32,
    said: Said,
}

impl Table {
    /// Resolves some entries of a policy: of those that contain an MSR, the smallest decides. Where
    /// two of the same size do, they agree: the parser has seen to it.
    #[must_use]
    pub(crate) fn resolve(policy: &Policy, entries: &[EntryId]) -> Self {
        let mut actions = Actions::default();
        let runs =
            Access::ALL.map(|access| Sweep::new(policy, entries, access, &mut actions).runs());
        Self {
            runs,
            actions: actions.all,
            default: policy.default_action().clone(),
        }
    }

    /// The segments of one direction, in order, without a gap.
    #[must_use]
    pub fn segments(&self, access: Access) -> impl DoubleEndedIterator<Item = Segment<'_>> {
        let all = 0..self.runs[access as usize].len();
        all.filter_map(move |place| self.segment(place, access))
    }

    /// What happens where no entry says anything.
    #[must_use]
    pub const fn default_action(&self) -> &Action {
        &self.default
    }

    /// The segment of one MSR.
    #[must_use]
    pub fn at(&self, index: MsrIndex, access: Access) -> Segment<'_> {
        self.segment(self.place(index, access), access)
            .unwrap_or(Segment {
                msrs: MsrRange::one(index),
                action: &self.default,
                said: Said::ByDefault,
            })
    }

    /// What a filter has to say.
    pub(crate) fn verdicts(&self) -> Verdicts {
        Verdicts::new(self.default.verdict(), |access| {
            self.segments(access).map(|segment| {
                let is_asked = segment.said != Said::ByKvm;
                (segment.msrs, is_asked.then(|| segment.action.verdict()))
            })
        })
    }

    /// The segments that share MSRs with `range`.
    pub(crate) fn within(
        &self,
        range: MsrRange,
        access: Access,
    ) -> impl Iterator<Item = Segment<'_>> {
        let places = self.place(range.first(), access)..=self.place(range.last(), access);
        places.filter_map(move |place| self.segment(place, access))
    }

    /// The number of an MSR's segment.
    fn place(&self, index: MsrIndex, access: Access) -> usize {
        self.runs[access as usize].partition_point(|run| run.last < index)
    }

    fn segment(&self, place: usize, access: Access) -> Option<Segment<'_>> {
        let runs = &self.runs[access as usize];
        let run = runs.get(place)?;
        let first = match place.checked_sub(1) {
            Some(before) => MsrIndex::new(runs[before].last.get() + 1),
            None => MsrIndex::MIN,
        };
        Some(Segment {
            msrs: MsrRange::new(first, run.last)?,
            action: self.actions.get(run.action as usize)?,
            said: run.said,
        })
    }
}

/// Actions by number.
#[derive(Default)]
struct Actions {
    all: Vec<Action>,
    places: HashMap<Action, u32>,
}

impl Actions {
    fn place(&mut self, action: &Action) -> u32 {
        if let Some(&place) = self.places.get(action) {
            return place;
        }
        // Fewer than there are entries, of which 32 bits count many times the limit.
        let place = u32::try_from(self.all.len()).unwrap_or(u32::MAX);
        self.all.push(action.clone());
        self.places.insert(action.clone(), place);
        place
    }
}

/// A walk over the MSRs from 0 up, with the entries that contain the current one at hand.
struct Sweep<'p> {
    policy: &'p Policy,
    actions: &'p mut Actions,
    access: Access,
    /// Where entries begin and end, one past their last MSR.
    edges: Vec<(u64, Edge)>,
    /// Smallest first.
    open: BTreeSet<(u64, EntryId)>,
    runs: Vec<Run>,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Edge {
    End(EntryId),
    Start(EntryId),
    X2apicStart,
    X2apicEnd,
}

impl<'p> Sweep<'p> {
    fn new(
        policy: &'p Policy,
        entries: &[EntryId],
        access: Access,
        actions: &'p mut Actions,
    ) -> Self {
        let ranges = entries.iter().flat_map(|&id| {
            let entry = policy.entry(id);
            let speaks = entry.action(access).is_some();
            entry
                .msrs()
                .ranges()
                .iter()
                .filter(move |_| speaks)
                .map(move |range| (id, range))
        });
        let mut edges: Vec<_> = ranges
            .flat_map(|(id, range)| {
                let (first, last) = (range.first().get(), range.last().get());
                [
                    (first.into(), Edge::Start(id)),
                    (u64::from(last) + 1, Edge::End(id)),
                ]
            })
            .chain([
                (X2APIC.start().get().into(), Edge::X2apicStart),
                (u64::from(X2APIC.end().get()) + 1, Edge::X2apicEnd),
            ])
            .collect();
        edges.sort_unstable();
        Self {
            policy,
            actions,
            access,
            edges,
            open: BTreeSet::new(),
            runs: Vec::new(),
        }
    }

    fn runs(mut self) -> Box<[Run]> {
        let edges = std::mem::take(&mut self.edges);
        let (mut at, mut in_x2apic) = (0, false);
        for (edge_at, edge) in edges {
            self.push(at, edge_at, in_x2apic);
            at = edge_at;
            match edge {
                Edge::Start(id) => _ = self.open.insert((self.size(id), id)),
                Edge::End(id) => _ = self.open.remove(&(self.size(id), id)),
                Edge::X2apicStart => in_x2apic = true,
                Edge::X2apicEnd => in_x2apic = false,
            }
        }
        self.push(at, 1 << 32, in_x2apic);
        self.runs.into()
    }

    fn size(&self, id: EntryId) -> u64 {
        self.policy.entry(id).msrs().count()
    }

    /// The MSRs from `from` to below `to` are decided by what is open now.
    fn push(&mut self, from: u64, to: u64, in_x2apic: bool) {
        let Some(msrs) = MsrRange::below(from, to) else {
            return;
        };
        let smallest = self.open.first().map(|&(_, id)| id);
        let (action, said) = match smallest {
            _ if in_x2apic => (&Action::Allow, Said::ByKvm),
            Some(id) => {
                let action = self.policy.entry(id).action(self.access);
                let action = action.unwrap_or(self.policy.default_action());
                (action, Said::ByEntry(id))
            }
            None => (self.policy.default_action(), Said::ByDefault),
        };
        match self.runs.last_mut() {
            Some(before) if before.said == said => before.last = msrs.last(),
            _ => {
                let (action, last) = (self.actions.place(action), msrs.last());
                self.runs.push(Run { last, action, said });
            }
        }
    }
}

#[cfg(test)]
mod tests;
