//! Entries that take the place of others: `override = true`.

use std::collections::{BTreeMap, HashMap};

use crate::msrs::MsrSet;
use crate::policy::{EntryId, Policy, Replaces, SourceId, When, WhenId};

/// All that an override needs to be known of an entry beside its MSRs. A policy has no more of these
/// than files and `[[when]]`s, however many of its entries speak of the same MSRs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Home {
    source: SourceId,
    when: Option<WhenId>,
}

/// The entries with one set of MSRs, by where they stand.
type Homes = BTreeMap<Home, Entries>;

#[derive(Default)]
struct Entries {
    all: Vec<EntryId>,
    /// Those of them with `override = true`.
    overriding: Vec<EntryId>,
}

/// The effect of an entry with `override = true`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Effect {
    /// Wherever an entry that it replaces would hold, another holds in its place.
    ForGood,
    /// An entry that it replaces still holds on some processors.
    OnSome,
}

/// The entries of a policy that are overridden, and those that override.
#[derive(Default)]
pub(crate) struct Overrides {
    /// By overridden entry, its place in `replacing`.
    replaced: HashMap<EntryId, usize>,
    /// Of the entries that replace some entries, one for each file and `[[when]]`.
    replacing: Vec<Box<[EntryId]>>,
    /// By entry that overrides another.
    effects: HashMap<EntryId, Effect>,
}

impl Overrides {
    /// Finds what each `override = true` of a policy replaces. The time grows with the number of
    /// entries, not with its square.
    pub(crate) fn of(policy: &Policy) -> Self {
        let mut overrides = Self::default();
        let is_overriding = |id: &EntryId| policy.entry(*id).replaces == Replaces::Included;
        let mut by_msrs = HashMap::<&MsrSet, Homes>::new();
        for id in policy.ids().filter(is_overriding) {
            by_msrs.entry(&policy.entry(id).msrs).or_default();
        }
        for id in policy.ids() {
            let entry = policy.entry(id);
            let Some(homes) = by_msrs.get_mut(&entry.msrs) else {
                continue;
            };
            let (source, when) = (entry.source(), entry.when);
            let entries = homes.entry(Home { source, when }).or_default();
            entries.all.push(id);
            entries.overriding.extend(Some(id).filter(is_overriding));
        }
        let alike = first_alike(policy);
        for homes in by_msrs.values() {
            overrides.between(policy, &alike, homes);
        }
        overrides
    }

    /// Notes what replaces what among the entries with one set of MSRs.
    fn between(&mut self, policy: &Policy, alike: &[WhenId], homes: &Homes) {
        let overriding = || homes.iter().filter(|(_, one)| !one.overriding.is_empty());
        let mut effects = BTreeMap::<Home, Effect>::new();
        for (home, below) in homes {
            let by: Vec<Home> = overriding()
                .map(|(by, _)| *by)
                .filter(|by| may_replace(policy, alike, *by, *home))
                .collect();
            if by.is_empty() {
                continue;
            }
            // Only an entry of the same `[[when]]`, or of none either, is there wherever this one is.
            let effect = if by.iter().any(|by| by.when == home.when) {
                Effect::ForGood
            } else {
                Effect::OnSome
            };
            let first = |by: &Home| homes[by].overriding.first().copied();
            self.replacing.push(by.iter().filter_map(first).collect());
            let place = self.replacing.len() - 1;
            self.replaced
                .extend(below.all.iter().map(|id| (*id, place)));
            for by in by {
                let most = effects.entry(by).or_insert(effect);
                *most = effect.max(*most);
            }
        }
        for (by, entries) in overriding() {
            if let Some(effect) = effects.get(by) {
                let all = entries.overriding.iter();
                self.effects.extend(all.map(|id| (*id, *effect)));
            }
        }
    }

    /// Of the entries that replace this one, one for each file and `[[when]]`.
    pub(crate) fn of_entry(&self, id: EntryId) -> impl Iterator<Item = EntryId> {
        let replacing = self.replaced.get(&id).map(|&place| &self.replacing[place]);
        replacing.into_iter().flatten().copied()
    }

    /// The effect of this entry on others, if it replaces any.
    pub(crate) fn effect(&self, id: EntryId) -> Option<Effect> {
        self.effects.get(&id).copied()
    }
}

/// Whether an entry that stands at `by` may replace one at `home`: an included one of the same
/// processors, or, for an entry of a `[[when]]`, one that holds for all processors.
fn may_replace(policy: &Policy, first_alike: &[WhenId], by: Home, home: Home) -> bool {
    let is_included = policy.below[by.source.number()].contains(&home.source);
    let is_general = by.when.is_some() && home.when.is_none();
    let cpus = |when: Option<WhenId>| when.map(|when| first_alike[when.number()]);
    is_included && (is_general || cpus(by.when) == cpus(home.when))
        || is_general && by.source == home.source
}

/// For each `[[when]]` the first that names the same processors. Each text has its own, and they are
/// the same in effect.
fn first_alike(policy: &Policy) -> Vec<WhenId> {
    let whens = policy.whens.iter();
    let first = |one: &When| policy.whens.iter().position(|first| first.cpus == one.cpus);
    whens.filter_map(first).map(WhenId::new).collect()
}
