//! Resolution of entries that overlap: among the entries that contain an MSR, the one with the
//! lowest rank decides.

use alloc::collections::BTreeSet;
use alloc::sync::Arc;
use alloc::vec::Vec;

use msrgate_filter::{Access, MsrIndex, X2APIC};

use crate::action::Action;
use crate::msrs::MsrRange;
use crate::origin::{DecidedBy, EntryId, Line};
use crate::rules::{Outcome, Rules, RulesBuilder};
use crate::settings::Log;

/// The entries of a policy, with a rank for each entry.
pub trait Layers {
    /// The MSR ranges of all entries that cover accesses of this direction, in any order.
    fn ranges(&self, access: Access) -> impl Iterator<Item = (EntryId, MsrRange)>;

    /// The rank of an entry. If two entries contain an MSR, the entry with the lower rank decides;
    /// if the ranks are equal, the entry with the lower number decides.
    fn rank(&self, entry: EntryId) -> u64;

    /// The action and the logging that an entry has for accesses of this direction. `None` stands for the
    /// action and the logging of the policy's default.
    fn outcome(&self, entry: EntryId, access: Access) -> Option<Outcome>;

    /// The action and the logging for accesses that no entry covers.
    fn default(&self) -> Outcome;
}

/// Resolves entries into rules for all MSRs. `lines` has, for each entry's number, the line of the
/// policy text on which the entry stands.
///
/// x2APIC registers always get a rule of KVM, even if an entry contains them (S3.1).
pub fn resolve(layers: &impl Layers, lines: Arc<[Line]>) -> Rules {
    let mut rules = RulesBuilder::default();
    let default = layers.default();
    for access in Access::ALL {
        let mut sweep = Sweep {
            layers,
            access,
            default: &default,
            open: BTreeSet::new(),
            rules: &mut rules,
        };
        sweep.run();
    }
    rules.finish(&default, lines)
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Edge {
    End(EntryId),
    Start(EntryId),
    X2apicStart,
    X2apicEnd,
}

/// A walk over the MSRs from 0 up, which keeps track of the entries that contain the current MSR.
struct Sweep<'l, L> {
    layers: &'l L,
    access: Access,
    default: &'l Outcome,
    /// The policy's entries that contain the current MSR, lowest rank first.
    open: BTreeSet<(u64, EntryId)>,
    rules: &'l mut RulesBuilder,
}

impl<L: Layers> Sweep<'_, L> {
    fn run(&mut self) {
        let (mut at, mut in_x2apic) = (0, false);
        for (edge_at, edge) in self.edges() {
            if edge_at > at {
                self.push(edge_at, in_x2apic);
                at = edge_at;
            }
            match edge {
                Edge::Start(id) => _ = self.open.insert((self.layers.rank(id), id)),
                Edge::End(id) => _ = self.open.remove(&(self.layers.rank(id), id)),
                Edge::X2apicStart => in_x2apic = true,
                Edge::X2apicEnd => in_x2apic = false,
            }
        }
        self.push(1 << 32, in_x2apic);
    }

    /// Returns the MSRs at which an entry or the x2APIC registers begin, and the MSRs directly after
    /// their ends, in ascending order.
    fn edges(&self) -> Vec<(u64, Edge)> {
        let mut edges: Vec<_> = self
            .layers
            .ranges(self.access)
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
        edges
    }

    /// Adds a rule for the MSRs below `to`, decided by the entries that contain the current MSR.
    fn push(&mut self, to: u64, in_x2apic: bool) {
        const KVM: Outcome = Outcome {
            action: Action::Allow,
            log: Log::None,
        };
        let Some(last) = to.checked_sub(1).and_then(|last| u32::try_from(last).ok()) else {
            return;
        };
        let lowest = self.open.first().map(|&(_, id)| id);
        let said = lowest.and_then(|id| self.layers.outcome(id, self.access));
        let (outcome, by) = match (lowest, &said) {
            _ if in_x2apic => (&KVM, DecidedBy::Kvm),
            (Some(id), Some(outcome)) => (outcome, DecidedBy::Entry(id)),
            (Some(id), None) => (self.default, DecidedBy::Entry(id)),
            (None, _) => (self.default, DecidedBy::Default),
        };
        self.rules
            .join(self.access, MsrIndex::new(last), outcome, by);
    }
}
