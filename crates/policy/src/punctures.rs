//! Punctures: included entries that loosen part of a wider entry of another text.
//!
//! An entry whose MSRs are a strict subset of another entry's MSRs wins, even over an entry of the
//! text that includes it. An author who writes a wide refusal beside an include does not see which
//! entries of the include lie within the refusal.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::rc::Rc;

use msrgate_filter::Access;
use msrgate_program::{Action, Comparison, EntryId, MsrRange, MsrSet};

use crate::compile::Compiled;
use crate::overrides::Overrides;
use crate::policy::{Policy, SourceSet};
use crate::remedy::{Limit, Limits, Remedies, Remedy};
use crate::resolve::variants;

/// A narrow entry that loosens part of a wider entry. The author of the wider entry's text need not
/// know of the narrow entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Puncture {
    /// The wider entry, part of which the narrow entry loosens.
    pub(crate) wide: EntryId,
    /// The narrow entry, which decides the accesses that it loosens.
    pub(crate) narrow: EntryId,
    /// The MSRs for which the narrow entry is looser, indexed by [`Access`], on all processors
    /// together.
    pub(crate) msrs: [Option<MsrSet>; 2],
    /// The entries that close the puncture if they are added to the policy.
    pub(crate) remedy: Rc<Remedy>,
}

/// The maximum number of punctures. Beyond the maximum, only the first puncture of each wider entry
/// is kept, so that the number of punctures grows with the number of entries, not with the number
/// of pairs of entries.
const MAX_PUNCTURES: usize = 10_000;

/// The maximum number of ranges in all punctures together. Beyond the maximum, a puncture gets one
/// range in each direction. Without this limit, 250 texts with similar entries for 60,000 MSRs each
/// would have 30 million ranges.
const MAX_STRETCHES: usize = 250_000;

/// The MSRs for which one entry loosens another, by direction.
type Places = [Vec<MsrRange>; 2];

/// The punctures that the walks have found so far.
#[derive(Default)]
struct Found {
    /// The loosened MSRs, by wider entry and narrower entry.
    places: BTreeMap<(EntryId, EntryId), Places>,
    /// The wider entries that have a puncture.
    wide: HashSet<EntryId>,
    /// The number of ranges in `places`.
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

    /// Joins the ranges found for the processors of one variant with those found before.
    fn join(&mut self) {
        self.stretches = 0;
        for places in self.places.values_mut().flatten() {
            let all = MsrSet::new(std::mem::take(places));
            *places = all.map_or_else(Vec::new, |all| all.ranges().to_vec());
            self.stretches += places.len();
        }
    }
}

/// Returns the punctures of a policy, in the order of the wider entries.
///
/// A narrow entry loosens a wider entry if its action, compared with the wider entry's, is not
/// [`Comparison::NoLooser`]. An entry in the text of the wider entry, or in a text that includes
/// that text, is not a puncture, but an exception that its author intends. A narrow entry is no
/// puncture either if the wider entry's text, or a text that includes it, repeats the narrow
/// entry's action for the same MSRs or for more: the author of that text then intends the action.
///
/// After the first 10,000 punctures, only the first puncture of each further wider entry is added.
/// After the first 250,000 ranges, each direction of a puncture gets only one range.
pub(crate) fn punctures(compiled: &Compiled) -> Vec<Puncture> {
    let policy = compiled.policy();
    // The author of a single text knows all its entries.
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

/// Returns the MSRs for which narrow entries loosen wider entries, on all processors together.
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

/// Returns the remedies by the MSRs of the narrow entries. Each remedy closes all punctures by the
/// narrow entries with these MSRs.
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
        // A line outside of every `[[when]]` closes the punctures on all processors. A line for
        // some processors is then needed only where an included entry holds on just these
        // processors.
        if bases.contains(&None) {
            let is_narrow = |&place: &Option<_>| remedies.has_included(policy.entry(narrow), place);
            bases.retain(|place| place.is_none() || is_narrow(place));
        }
        let remedy = remedies.against(policy.entry(narrow), &bases, limits);
        (msrs, Rc::new(remedy))
    };
    by_msrs.into_iter().map(remedy).collect()
}

/// Returns a limit that is at least as strict as both limits: the stricter action, or deny if
/// neither action is known to be stricter.
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

/// Returns the edges of the entries that have an action in this direction: their first MSRs, and
/// the MSRs after their last ones.
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

/// The variants on which an entry holds, from the point of view of one variant.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Holding {
    /// The entry does not hold on this variant.
    Nowhere,
    /// The entry holds on this variant, but not on all.
    HereAndNotEverywhere,
    /// The entry holds on every variant.
    Everywhere,
}

/// The number of an entry's MSRs, and the entry. The entry with the fewest MSRs decides.
type Place = (u64, EntryId);

/// A walk over the MSRs from 0 up, with the entries of each text that contain the current MSR.
struct Sweep<'p> {
    policy: &'p Policy,
    access: Access,
    /// The variants on which each entry holds, indexed by the entry's number.
    holding: &'p [Holding],
    /// The entries of each text that contain the current MSR, the smallest entry first.
    open: Vec<BTreeSet<Place>>,
    /// For each text, the smallest entry that contains the current MSR. This entry would decide if
    /// the text stood alone.
    views: BTreeSet<Place>,
    /// The actions of the entries in `views`, each with the number of entries that have it.
    said: BTreeMap<&'p Action, usize>,
    /// The number of entries that contain the current MSR and do not hold on every variant.
    special: usize,
}

impl<'p> Sweep<'p> {
    /// Runs the walk. `looked` has the ranges that earlier walks, for other variants, have
    /// compared, and in which all entries hold on every variant. This walk would find the same
    /// punctures there, so it skips these ranges.
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

    /// Starts or ends an entry: the walk enters or leaves the entry's MSRs.
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

    /// Returns true if the action that decides about the current MSR is looser than, or not
    /// comparable with, the action that one of the policy's texts by itself gives to that MSR.
    fn is_loosened(&self) -> bool {
        let decided = self.views.first().and_then(|&view| self.says(view));
        decided.is_some_and(|decided| {
            let mut said = self.said.keys();
            said.any(|said| decided.compared_with(said) != Comparison::NoLooser)
        })
    }

    /// Finds the punctures at these MSRs, and adds them to `found`: compares the action that
    /// decides about the MSRs with the action that each other text by itself gives to them.
    fn look(&self, msrs: MsrRange, found: &mut Found) {
        let mut views = self.views.iter().copied();
        let Some(narrow) = views.next() else {
            return;
        };
        let Some(decided) = self.says(narrow) else {
            return;
        };
        let source = |(_, id): Place| self.policy.entry(id).source();
        // This set gets the texts that cannot have a puncture here: if the author of a text accepts
        // the deciding action, the texts that it includes cannot object.
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
