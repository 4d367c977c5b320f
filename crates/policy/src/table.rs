//! What a policy says of each of 2^32 MSRs in each direction.

use std::collections::BTreeSet;

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
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// The MSRs.
    pub msrs: MsrRange,
    /// What happens to them.
    pub action: Action,
    /// What says so.
    pub said: Said,
}

/// A resolved policy: for each direction, segments that cover all MSRs once, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    segments: [Vec<Segment>; 2],
    default: Action,
}

impl Table {
    /// Resolves some entries of a policy: of those that contain an MSR, the smallest decides. Where
    /// two of the same size do, they agree: the parser has seen to it.
    #[must_use]
    pub(crate) fn resolve(policy: &Policy, entries: &[EntryId]) -> Self {
        Self {
            segments: Access::ALL.map(|access| Sweep::new(policy, entries, access).segments()),
            default: policy.default_action().clone(),
        }
    }

    /// The segments of one direction, in order, without a gap.
    #[must_use]
    pub fn segments(&self, access: Access) -> &[Segment] {
        &self.segments[access as usize]
    }

    /// What happens where no entry says anything.
    #[must_use]
    pub const fn default_action(&self) -> &Action {
        &self.default
    }

    /// The segment of one MSR.
    #[must_use]
    pub fn at(&self, index: MsrIndex, access: Access) -> &Segment {
        let segments = self.segments(access);
        &segments[segments.partition_point(|segment| segment.msrs.last() < index)]
    }

    /// What a filter has to say.
    pub(crate) fn verdicts(&self) -> Verdicts {
        Verdicts::new(self.default.verdict(), |access| {
            let segments = self.segments(access).iter();
            segments.map(|segment| {
                let is_asked = segment.said != Said::ByKvm;
                (segment.msrs, is_asked.then(|| segment.action.verdict()))
            })
        })
    }

    /// The segments that share MSRs with `range`.
    pub(crate) fn within(&self, range: MsrRange, access: Access) -> &[Segment] {
        let segments = self.segments(access);
        let start = segments.partition_point(|segment| segment.msrs.last() < range.first());
        let end = segments.partition_point(|segment| segment.msrs.first() <= range.last());
        &segments[start..end]
    }
}

/// A walk over the MSRs from 0 up, with the entries that contain the current one at hand.
struct Sweep<'p> {
    policy: &'p Policy,
    access: Access,
    /// Where entries begin and end, one past their last MSR.
    edges: Vec<(u64, Edge)>,
    /// Smallest first.
    open: BTreeSet<(u64, EntryId)>,
    segments: Vec<Segment>,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Edge {
    End(EntryId),
    Start(EntryId),
    X2apicStart,
    X2apicEnd,
}

impl<'p> Sweep<'p> {
    fn new(policy: &'p Policy, entries: &[EntryId], access: Access) -> Self {
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
            access,
            edges,
            open: BTreeSet::new(),
            segments: Vec::new(),
        }
    }

    fn segments(mut self) -> Vec<Segment> {
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
        self.segments
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
            _ if in_x2apic => (Action::Allow, Said::ByKvm),
            Some(id) => {
                let action = self.policy.entry(id).action(self.access);
                let action = action.unwrap_or(self.policy.default_action());
                (action.clone(), Said::ByEntry(id))
            }
            None => (self.policy.default_action().clone(), Said::ByDefault),
        };
        match self.segments.last_mut() {
            Some(last) if last.said == said => {
                if let Some(joined) = MsrRange::new(last.msrs.first(), msrs.last()) {
                    last.msrs = joined;
                }
            }
            _ => self.segments.push(Segment { msrs, action, said }),
        }
    }
}

#[cfg(test)]
mod tests;
