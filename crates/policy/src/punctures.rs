//! Entries of includes that loosen part of what a wider entry of another text says.
//!
//! A strict subset wins, also over an entry of the text that includes it. Who writes a wide refusal
//! beside an include does not see which of the include's entries lie within it.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use msrgate_filter::Access;

use crate::compile::Compiled;
use crate::policy::{Policy, SourceId};
use crate::remedy::{Remedies, Remedy};
use crate::resolve::variants;
use msrgate_program::EntryId;
use msrgate_program::{Action, Comparison};
use msrgate_program::{MsrRange, MsrSet};

/// A narrow entry that loosens part of a wider one, which another text has that does not know of it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Puncture {
    /// The wider entry.
    pub wide: EntryId,
    /// The entry that lies within it, and decides.
    pub narrow: EntryId,
    /// The MSRs at which it loosens the wider one, by [`Access`], on all processors together.
    pub msrs: [Option<MsrSet>; 2],
    /// The entry of the policy that closes it.
    pub remedy: Remedy,
}

/// The MSRs at which one entry loosens another, by direction.
type Places = [Vec<MsrRange>; 2];

/// The punctures of a policy, in the order of the wider entries.
///
/// An entry loosens a wider one where what it says is not [`Comparison::NoLooser`]. It may do so in
/// the text of the wider one, and in a text that includes that: there it is an exception that its
/// author has made. So is one that such a text repeats, with the same MSRs or with more of them.
#[must_use]
pub fn punctures(compiled: &Compiled) -> Vec<Puncture> {
    let policy = compiled.policy();
    // One text alone knows of all that it says.
    if policy.sources().len() == 1 {
        return Vec::new();
    }
    let mut found = BTreeMap::<(EntryId, EntryId), Places>::new();
    for active in variants(policy) {
        for access in Access::ALL {
            let edges = edges(policy, &active.entries, access);
            let sweep = Sweep {
                policy,
                access,
                open: BTreeMap::new(),
            };
            sweep.run(edges, &mut found);
        }
    }
    let limits = limits(policy, &found);
    let remedies = Remedies::new(policy);
    let puncture = |((wide, narrow), places): (_, Places)| {
        let strictest = Access::ALL.map(|access| {
            let msrs = &policy.entry(narrow).msrs;
            limits.get(&(msrs, access)).copied()
        });
        Puncture {
            wide,
            narrow,
            msrs: places.map(MsrSet::new),
            remedy: remedies.against(policy.entry(narrow), policy.entry(wide), strictest),
        }
    };
    found.into_iter().map(puncture).collect()
}

/// The strictest that wider entries say of what entries of the same MSRs loosen: one line closes all
/// of these holes.
fn limits<'p>(
    policy: &'p Policy,
    found: &BTreeMap<(EntryId, EntryId), Places>,
) -> HashMap<(&'p MsrSet, Access), &'p Action> {
    let mut limits = HashMap::<_, &Action>::new();
    for ((wide, narrow), places) in found {
        let msrs = &policy.entry(*narrow).msrs;
        for access in Access::ALL {
            let says = policy.entry(*wide).action(access);
            if let Some(says) = says.filter(|_| !places[access as usize].is_empty()) {
                let limit = limits.entry((msrs, access)).or_insert(says);
                if says.reach() < limit.reach() {
                    *limit = says;
                }
            }
        }
    }
    limits
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Edge {
    End,
    Start,
}

/// Where entries that say something in this direction begin and end, one past their last MSR.
fn edges(policy: &Policy, entries: &[EntryId], access: Access) -> Vec<(u64, Edge, EntryId)> {
    let entries = entries.iter().map(|&id| (id, policy.entry(id)));
    let mut edges: Vec<_> = entries
        .filter(|(_, entry)| entry.action(access).is_some())
        .flat_map(|(id, entry)| entry.msrs().ranges().iter().map(move |range| (id, range)))
        .flat_map(|(id, range)| {
            let start = u64::from(range.first().get());
            let end = u64::from(range.last().get()) + 1;
            [(start, Edge::Start, id), (end, Edge::End, id)]
        })
        .collect();
    edges.sort_unstable();
    edges
}

/// A walk over the MSRs from 0 up, with the entries of each text that contain the current one.
struct Sweep<'p> {
    policy: &'p Policy,
    access: Access,
    /// Of each text, the smallest first.
    open: BTreeMap<SourceId, BTreeSet<(u64, EntryId)>>,
}

impl Sweep<'_> {
    fn run(
        mut self,
        edges: Vec<(u64, Edge, EntryId)>,
        found: &mut BTreeMap<(EntryId, EntryId), Places>,
    ) {
        let mut from = 0;
        for (at, edge, id) in edges {
            if let Some(msrs) = MsrRange::below(from, at) {
                self.look(msrs, found);
            }
            from = at;
            let entry = self.policy.entry(id);
            let place = (entry.msrs().count(), id);
            let open = self.open.entry(entry.source()).or_default();
            match edge {
                Edge::Start => _ = open.insert(place),
                Edge::End => _ = open.remove(&place),
            }
            if open.is_empty() {
                self.open.remove(&entry.source());
            }
        }
    }

    /// Compares what decides these MSRs with what each other text says of them.
    fn look(&self, msrs: MsrRange, found: &mut BTreeMap<(EntryId, EntryId), Places>) {
        // A text's own view is that of its smallest entry.
        let mut views: Vec<_> = self
            .open
            .values()
            .filter_map(|open| open.first().copied())
            .collect();
        views.sort_unstable();
        let Some((&(_, narrow), wider)) = views.split_first() else {
            return;
        };
        let source = |id: EntryId| self.policy.entry(id).source();
        let Some(decided) = self.policy.entry(narrow).action(self.access) else {
            return;
        };
        // The texts that say the like, or something looser: the others that they include have to bear it.
        let mut agreeing = vec![source(narrow)];
        for &(_, wide) in wider {
            let text = source(wide);
            if agreeing
                .iter()
                .any(|&one: &SourceId| self.policy.below[one.number()].contains(text))
            {
                continue;
            }
            let said = self.policy.entry(wide).action(self.access);
            if said.is_none_or(|said| decided.compared_with(said) == Comparison::NoLooser) {
                agreeing.push(text);
                continue;
            }
            let places = found.entry((wide, narrow)).or_default();
            places[self.access as usize].push(msrs);
        }
    }
}

#[cfg(test)]
mod tests;
