//! What a policy says of each of 2^32 MSRs in each direction.

use std::collections::BTreeSet;

use msrgate_filter::{Access, MsrIndex, X2APIC};

use crate::policy::{Action, Entry, EntryId, MsrRange, Policy};

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
    /// Resolves a policy: of the entries that contain an MSR, the smallest decides. Where two of
    /// the same size do, they agree: the parser has seen to it.
    #[must_use]
    pub fn resolve(policy: &Policy) -> Self {
        Self {
            segments: Access::ALL.map(|access| Sweep::new(policy, access).segments()),
            default: policy.default_action(),
        }
    }

    /// The segments of one direction, in order, without a gap.
    #[must_use]
    pub fn segments(&self, access: Access) -> &[Segment] {
        &self.segments[access as usize]
    }

    /// What happens where no entry says anything.
    #[must_use]
    pub const fn default_action(&self) -> Action {
        self.default
    }

    /// The segment of one MSR.
    #[must_use]
    pub fn at(&self, index: MsrIndex, access: Access) -> Segment {
        let segments = self.segments(access);
        segments[segments.partition_point(|segment| segment.msrs.last() < index)]
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
    fn new(policy: &'p Policy, access: Access) -> Self {
        let named = |&(_, entry): &(usize, &Entry)| entry.action(access).is_some();
        let mut edges: Vec<_> = (policy.entries().iter().enumerate())
            .filter(named)
            .flat_map(|(id, entry)| {
                let (first, last) = (entry.msrs().first().get(), entry.msrs().last().get());
                let id = EntryId(id);
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
        let Some(msrs) = below(from, to) else { return };
        let smallest = self.open.first().map(|&(_, id)| id);
        let (action, said) = match smallest {
            _ if in_x2apic => (Action::Allow, Said::ByKvm),
            Some(id) => {
                let action = self.policy.entry(id).action(self.access);
                (
                    action.unwrap_or(self.policy.default_action()),
                    Said::ByEntry(id),
                )
            }
            None => (self.policy.default_action(), Said::ByDefault),
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

/// The MSRs from `from` to below `to`, if there are any.
fn below(from: u64, to: u64) -> Option<MsrRange> {
    let first = u32::try_from(from).ok()?;
    let last = u32::try_from(to.checked_sub(1)?).ok()?;
    MsrRange::new(MsrIndex::new(first), MsrIndex::new(last))
}

#[cfg(test)]
mod tests;
