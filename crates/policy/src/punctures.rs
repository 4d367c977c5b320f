//! Entries of includes that loosen part of what a wider entry of another text says.
//!
//! A strict subset wins, also over an entry of the text that includes it. Who writes a wide refusal
//! beside an include does not see which of the include's entries lie within it.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::rc::Rc;

use msrgate_filter::Access;
use msrgate_program::{Action, Comparison, EntryId, MsrRange, MsrSet};

use crate::compile::Compiled;
use crate::overrides::Overrides;
use crate::policy::{Policy, SourceId, SourceSet};
use crate::remedy::{Limit, Limits, Remedies, Remedy};
use crate::resolve::variants;

/// A narrow entry that loosens part of a wider one, which another text has that does not know of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Puncture {
    /// The wider entry.
    pub(crate) wide: EntryId,
    /// The entry that lies within it, and decides.
    pub(crate) narrow: EntryId,
    /// The MSRs at which it loosens the wider one, by [`Access`], on all processors together.
    pub(crate) msrs: [Option<MsrSet>; 2],
    /// The entries of the policy that close it.
    pub(crate) remedy: Rc<Remedy>,
}

/// With so many punctures, of each wider entry that has more of them only the first is kept: as many
/// as there are entries, and not as many as there are pairs of them.
const MAX_PUNCTURES: usize = 10_000;

/// With so many stretches of MSRs, of each puncture that has some no more are kept: 250 texts that each say
/// the like of 60,000 MSRs would have 30 million.
const MAX_STRETCHES: usize = 250_000;

/// The MSRs at which one entry loosens another, by direction.
type Places = [Vec<MsrRange>; 2];

/// The punctures that were found so far.
#[derive(Default)]
struct Found {
    /// By the wider entry and the narrower one.
    places: BTreeMap<(EntryId, EntryId), Places>,
    /// The wider entries.
    wide: HashSet<EntryId>,
    /// How many stretches of MSRs there are in all.
    stretches: usize,
}

impl Found {
    fn note(&mut self, pair: (EntryId, EntryId), access: Access, msrs: MsrRange) {
        let is_full = self.places.len() >= MAX_PUNCTURES;
        if let Some(places) = self.places.get_mut(&pair) {
            let places = &mut places[access as usize];
            if self.stretches < MAX_STRETCHES || places.is_empty() {
                self.stretches += 1;
                places.push(msrs);
            }
            return;
        }
        if is_full && self.wide.contains(&pair.0) {
            return;
        }
        self.wide.insert(pair.0);
        self.stretches += 1;
        let places = self.places.entry(pair).or_default();
        places[access as usize].push(msrs);
    }

    /// Joins what was found on the processors of one variant with what was found before.
    fn join(&mut self) {
        self.stretches = 0;
        for places in self.places.values_mut().flatten() {
            let all = MsrSet::new(std::mem::take(places));
            *places = all.map_or_else(Vec::new, |all| all.ranges().to_vec());
            self.stretches += places.len();
        }
    }
}

/// The punctures of a policy, in the order of the wider entries.
///
/// An entry loosens a wider one where what it says is not [`Comparison::NoLooser`]. It may do so in
/// the text of the wider one, and in a text that includes that: there it is an exception that its
/// author has made. So is one that such a text repeats, with the same MSRs or with more of them.
///
/// After the first 10,000 punctures, only the first of each wider entry that has none yet is added; after the
/// first 250,000 stretches of MSRs, only one of each direction of a puncture.
pub(crate) fn punctures(compiled: &Compiled) -> Vec<Puncture> {
    let policy = compiled.policy();
    // One text alone knows of all that it says.
    if policy.sources().len() == 1 {
        return Vec::new();
    }
    let mut found = Found::default();
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
        found.join();
    }
    let found = found.places;
    if found.is_empty() {
        return Vec::new();
    }
    let overrides = Overrides::of(policy);
    let remedies = Remedies::new(policy, &overrides);
    let closing = closing(policy, &found, &remedies);
    let puncture = |((wide, narrow), places): (_, Places)| Puncture {
        wide,
        narrow,
        msrs: places.map(MsrSet::new),
        remedy: closing[policy.entry(narrow).msrs()].clone(),
    };
    found.into_iter().map(puncture).collect()
}

/// Of the MSRs of each narrow entry, the one remedy that closes all holes that entries of these MSRs make.
fn closing<'p>(
    policy: &'p Policy,
    found: &BTreeMap<(EntryId, EntryId), Places>,
    remedies: &Remedies<'p>,
) -> HashMap<&'p MsrSet, Rc<Remedy>> {
    let mut by_msrs = HashMap::<_, (EntryId, Vec<_>, Limits<'p>)>::new();
    for ((wide, narrow), places) in found {
        let (wide, loose) = (policy.entry(*wide), policy.entry(*narrow));
        let (_, bases, limits) = by_msrs
            .entry(loose.msrs())
            .or_insert_with(|| (*narrow, Vec::new(), [None; 2]));
        let base = remedies.base(loose, wide);
        if !bases.contains(&base) {
            bases.push(base);
        }
        for access in Access::ALL {
            if let Some(says) = wide.action(access) {
                let limit = if places[access as usize].is_empty() {
                    Limit::Whole(says)
                } else {
                    Limit::Loosened(says)
                };
                let so_far = &mut limits[access as usize];
                *so_far = Some(so_far.map_or(limit, |so_far| stricter(so_far, limit)));
            }
        }
    }
    let remedy = |(msrs, (narrow, mut bases, limits)): (_, (_, Vec<_>, _))| {
        // A line that holds for all processors closes the holes of each.
        if bases.contains(&None) {
            let is_narrow = |&place: &Option<_>| remedies.has_included(policy.entry(narrow), place);
            bases.retain(|place| place.is_none() || is_narrow(place));
        }
        let remedy = remedies.against(policy.entry(narrow), &bases, limits);
        (msrs, Rc::new(remedy))
    };
    by_msrs.into_iter().map(remedy).collect()
}

/// The limit that keeps both.
fn stricter<'a>(one: Limit<'a>, other: Limit<'a>) -> Limit<'a> {
    let (first, second) = (one.action(), other.action());
    let action = if first.compared_with(second) == Comparison::NoLooser {
        first
    } else if second.compared_with(first) == Comparison::NoLooser {
        second
    } else {
        &Action::Deny
    };
    match (one, other) {
        (Limit::Whole(_), Limit::Whole(_)) => Limit::Whole(action),
        _ => Limit::Loosened(action),
    }
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Edge {
    End,
    Start,
}

/// The beginnings and the ends, one past the last MSR, of entries that say something in this direction.
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
    fn run(mut self, edges: Vec<(u64, Edge, EntryId)>, found: &mut Found) {
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
    fn look(&self, msrs: MsrRange, found: &mut Found) {
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
        // Of the texts that say the like, or something looser, those that they include have to bear it.
        let mut bearing = SourceSet::default();
        bearing.extend(self.policy.below[source(narrow).number()]);
        for &(_, wide) in wider {
            let text = source(wide);
            if bearing.contains(text) {
                continue;
            }
            let said = self.policy.entry(wide).action(self.access);
            if said.is_none_or(|said| decided.compared_with(said) == Comparison::NoLooser) {
                bearing.extend(self.policy.below[text.number()]);
                continue;
            }
            found.note((wide, narrow), self.access, msrs);
        }
    }
}

#[cfg(test)]
mod tests;
