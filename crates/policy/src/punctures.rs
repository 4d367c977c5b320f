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
use crate::policy::{Policy, SourceSet};
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
    let found = found(policy).places;
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

/// The places at which entries loosen wider ones, on all processors together.
fn found(policy: &Policy) -> Found {
    let ways = variants(policy);
    let mut counts = vec![0; policy.entries().len()];
    for id in ways.iter().flat_map(|active| &active.entries) {
        counts[id.number()] += 1;
    }
    let edges = Access::ALL.map(|access| edges(policy, access));
    let mut looked = Access::ALL.map(|_| HashSet::new());
    let mut found = Found::default();
    for active in &ways {
        let mut holding = vec![Holding::Nowhere; counts.len()];
        for id in &active.entries {
            let is_everywhere = counts[id.number()] == ways.len();
            holding[id.number()] = if is_everywhere {
                Holding::Everywhere
            } else {
                Holding::HereAndNotEverywhere
            };
        }
        for access in Access::ALL {
            let sweep = Sweep {
                policy,
                access,
                holding: &holding,
                open: vec![BTreeSet::new(); policy.sources().len()],
                views: BTreeSet::new(),
                said: BTreeMap::new(),
                special: 0,
            };
            let index = access as usize;
            sweep.run(&edges[index], &mut looked[index], &mut found);
        }
        found.join();
    }
    found
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
fn edges(policy: &Policy, access: Access) -> Vec<(u64, Edge, EntryId)> {
    let entries = policy.ids().map(|id| (id, policy.entry(id)));
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

/// The processors on which an entry decides, seen from one way in which the `[[when]]`s hold.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Holding {
    /// It does not decide in this way.
    Nowhere,
    /// It decides in this way, and not in all.
    HereAndNotEverywhere,
    /// It decides in every way.
    Everywhere,
}

/// An entry, and before it how many MSRs it has: the smaller decides.
type Place = (u64, EntryId);

/// A walk over the MSRs from 0 up, with the entries of each text that contain the current one.
struct Sweep<'p> {
    policy: &'p Policy,
    access: Access,
    /// By the number of the entry.
    holding: &'p [Holding],
    /// The entries of each text, the smallest first.
    open: Vec<BTreeSet<Place>>,
    /// The smallest entry of each text: what this text alone would say.
    views: BTreeSet<Place>,
    /// What the views say, each with the number of views that say it.
    said: BTreeMap<&'p Action, usize>,
    /// How many of the open entries do not hold on all processors.
    special: usize,
}

impl<'p> Sweep<'p> {
    /// `looked` are the MSRs that an earlier walk has compared where all open entries hold on all processors:
    /// they are the same ones in this walk.
    fn run(
        mut self,
        edges: &[(u64, Edge, EntryId)],
        looked: &mut HashSet<MsrRange>,
        found: &mut Found,
    ) {
        let mut from = 0;
        for &(at, edge, id) in edges {
            let holding = self.holding[id.number()];
            if holding == Holding::Nowhere {
                continue;
            }
            if let Some(msrs) = MsrRange::below(from, at)
                && self.is_loosened()
                && (self.special > 0 || looked.insert(msrs))
            {
                self.look(msrs, found);
            }
            from = at;
            if holding == Holding::HereAndNotEverywhere {
                match edge {
                    Edge::Start => self.special += 1,
                    Edge::End => self.special -= 1,
                }
            }
            self.cross(edge, id);
        }
    }

    /// Opens or closes an entry.
    fn cross(&mut self, edge: Edge, id: EntryId) {
        let entry = self.policy.entry(id);
        let place = (entry.msrs().count(), id);
        let open = &mut self.open[entry.source().number()];
        let before = open.first().copied();
        match edge {
            Edge::Start => _ = open.insert(place),
            Edge::End => _ = open.remove(&place),
        }
        let after = open.first().copied();
        if before == after {
            return;
        }
        if let Some(view) = before {
            self.views.remove(&view);
            if let Some(said) = self.says(view)
                && let Some(count) = self.said.get_mut(said)
            {
                *count -= 1;
                if *count == 0 {
                    self.said.remove(said);
                }
            }
        }
        if let Some(view) = after {
            self.views.insert(view);
            if let Some(said) = self.says(view) {
                *self.said.entry(said).or_default() += 1;
            }
        }
    }

    fn says(&self, (_, id): Place) -> Option<&'p Action> {
        self.policy.entry(id).action(self.access)
    }

    /// Whether what decides is looser than what some text says, or different.
    fn is_loosened(&self) -> bool {
        let decided = self.views.first().and_then(|&view| self.says(view));
        decided.is_some_and(|decided| {
            let mut said = self.said.keys();
            said.any(|said| decided.compared_with(said) != Comparison::NoLooser)
        })
    }

    /// Compares what decides these MSRs with what each other text says of them.
    fn look(&self, msrs: MsrRange, found: &mut Found) {
        let mut views = self.views.iter().copied();
        let Some(narrow) = views.next() else {
            return;
        };
        let Some(decided) = self.says(narrow) else {
            return;
        };
        let source = |(_, id): Place| self.policy.entry(id).source();
        // Of the texts that say the like, or something looser, those that they include have to bear it.
        let mut bearing = SourceSet::default();
        bearing.extend(self.policy.below[source(narrow).number()]);
        for wide in views {
            let text = source(wide);
            if bearing.contains(text) {
                continue;
            }
            let said = self.says(wide);
            if said.is_none_or(|said| decided.compared_with(said) == Comparison::NoLooser) {
                bearing.extend(self.policy.below[text.number()]);
                continue;
            }
            found.note((wide.1, narrow.1), self.access, msrs);
        }
    }
}

#[cfg(test)]
mod tests;
