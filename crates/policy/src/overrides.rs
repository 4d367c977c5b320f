//! Overrides: entries that replace other entries (`override = true`).

use std::collections::{BTreeMap, HashMap};

use msrgate_program::{EntryId, MsrSet};

use crate::policy::{Policy, Replaces, SourceId, When, WhenId};

/// The text and the `[[when]]` that contain an entry. An entry's home and MSRs decide which other
/// entries the entry can override. A policy has at most as many homes as files and `[[when]]`s,
/// however many of its entries name the same MSRs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Home {
    source: SourceId,
    when: Option<WhenId>,
}

/// The entries that name the same MSRs, grouped by their text and `[[when]]`.
type Homes = BTreeMap<Home, Entries>;

#[derive(Default)]
struct Entries {
    all: Vec<EntryId>,
    /// The entries with `override = true`.
    overriding: Vec<EntryId>,
}

/// The effect of an entry with `override = true`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Effect {
    /// On each processor on which a replaced entry would hold, another entry holds in its place.
    ForGood,
    /// A replaced entry still holds on some processors.
    OnSome,
}

/// The entries of a policy that are overridden, and the entries that override them.
#[derive(Default)]
pub(crate) struct Overrides {
    /// For each overridden entry, the index of its list in `replacing`.
    replaced: HashMap<EntryId, usize>,
    /// Lists of the entries that replace an overridden entry. A list has one entry for each file
    /// and `[[when]]`.
    replacing: Vec<Box<[EntryId]>>,
    /// The effect of each overriding entry.
    effects: HashMap<EntryId, Effect>,
}

impl Overrides {
    /// Finds the entries that each `override = true` of a policy replaces. The time grows in
    /// proportion to the number of entries, not to its square.
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

    /// Records, for entries that name the same MSRs, the replaced entries and the entries that
    /// replace them.
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
            // If an overriding entry is in the same `[[when]]` as the replaced entry, the two hold
            // on the same processors. The same is true if both entries are outside of every
            // `[[when]]`.
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

    /// Returns the entries that replace this entry: one for each file and `[[when]]`.
    pub(crate) fn of_entry(&self, id: EntryId) -> impl Iterator<Item = EntryId> {
        let replacing = self.replaced.get(&id).map(|&place| &self.replacing[place]);
        replacing.into_iter().flatten().copied()
    }

    /// Returns the effect of this entry, if it replaces any.
    pub(crate) fn effect(&self, id: EntryId) -> Option<Effect> {
        self.effects.get(&id).copied()
    }
}

/// Returns true if an entry with home `by` may replace an entry with home `home`. Any entry may
/// replace an included entry for the same processors. An entry of a `[[when]]` may also replace an
/// entry for all processors, if that entry is included or in the same text.
fn may_replace(policy: &Policy, first_alike: &[WhenId], by: Home, home: Home) -> bool {
    let is_included = policy.below[by.source.number()].contains(home.source);
    let is_general = by.when.is_some() && home.when.is_none();
    let cpus = |when: Option<WhenId>| when.map(|when| first_alike[when.number()]);
    is_included && (is_general || cpus(by.when) == cpus(home.when))
        || is_general && by.source == home.source
}

/// Returns, for each `[[when]]`, the first `[[when]]` for the same processors. Each text has its
/// own `[[when]]`s, but `[[when]]`s for the same processors have the same effect.
fn first_alike(policy: &Policy) -> Vec<WhenId> {
    let whens = policy.whens.iter();
    let first = |one: &When| policy.whens.iter().position(|first| first.cpus == one.cpus);
    whens.filter_map(first).map(WhenId::new).collect()
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;

    use proptest::prelude::*;

    use super::*;
    use crate::parse::{self, IncludeError, Includes};
    use crate::policy::Entry;
    use crate::source::Source;

    /// The includes of the tests: `b.toml` includes `c.toml`.
    struct Files([String; 2]);

    impl Includes for Files {
        fn open(&mut self, _: &Source, path: &str) -> Result<Source, IncludeError> {
            Ok(Source::new(path, &self.0[usize::from(path == "c.toml")]))
        }
    }

    /// Returns true if the entry `by` replaces `entry`, by the rule that the reference states.
    fn replaces(policy: &Policy, by: &Entry, entry: &Entry) -> bool {
        let cpus = |one: &Entry| {
            one.when
                .map(|when| policy.whens[when.number()].cpus.clone())
        };
        let is_included = policy.below[by.source().number()].contains(entry.source());
        let is_general = by.when.is_some() && entry.when.is_none();
        by.replaces == Replaces::Included
            && by.msrs == entry.msrs
            && (is_included && (cpus(by) == cpus(entry) || is_general)
                || is_general && by.source() == entry.source())
    }

    /// Returns what [`Overrides`] should find for an entry, by the reference's rule: the homes of
    /// the entries that replace it, and the effect that the entry itself has as an override.
    fn by_the_rule(policy: &Policy, id: EntryId) -> (Vec<Home>, Option<Effect>) {
        let home = |id: EntryId| {
            let (source, when) = (policy.entry(id).source(), policy.entry(id).when);
            Home { source, when }
        };
        let replacing = |id: EntryId| -> Vec<Home> {
            let entry = policy.entry(id);
            let all = policy
                .ids()
                .filter(|by| replaces(policy, policy.entry(*by), entry));
            let mut homes: Vec<_> = all.map(home).collect();
            homes.sort();
            homes.dedup();
            homes
        };
        let of_replaced = |other: EntryId| {
            let is_there = |by: &Home| by.when == policy.entry(other).when;
            if replacing(other).iter().any(is_there) {
                Effect::ForGood
            } else {
                Effect::OnSome
            }
        };
        let own = policy.entry(id);
        let replaced = policy
            .ids()
            .filter(|other| replaces(policy, own, policy.entry(*other)));
        (replacing(id), replaced.map(of_replaced).max())
    }

    /// Returns a text with these entries and `[[when]]`s. Entries of one MSR have the same action,
    /// so the only possible mistake is an override that replaces nothing.
    fn text(head: &str, entries: &[(usize, u32, bool)]) -> String {
        const CPUS: [&str; 2] = ["{ model = 1 }", "{ model = 2 }"];
        let mut text = head.to_owned();
        for when in 0..3 {
            match when {
                0 => text.push_str("[msrs]\n"),
                _ => _ = writeln!(text, "[[when]]\ncpu = {}\n[when.msrs]", CPUS[when - 1]),
            }
            let own = entries.iter().filter(|(at, ..)| *at == when);
            let mut keys = std::collections::BTreeSet::new();
            for (_, msr, overrides) in own.filter(|(_, msr, _)| keys.insert(*msr)) {
                // Each MSR has two spellings.
                let spelling = ["0x1", "0x01"][usize::from(*msr >= 2)];
                let _ = writeln!(
                    text,
                    "{spelling}{} = {{ read = 'allow', write = 'deny', override = {overrides} }}",
                    msr % 2
                );
            }
        }
        text
    }

    proptest! {
        #[test]
        fn entries_with_override_replace_exactly_the_entries_that_the_reference_states(
            entries in prop::collection::vec(
                prop::collection::vec((0_usize..3, 0_u32..4, any::<bool>()), 0..9), 3
            ),
        ) {
            let heads = [
                "policy = 1\ndefault = 'deny'\ninclude = ['b.toml', 'c.toml']\n",
                "policy = 1\ninclude = ['c.toml']\n",
                "policy = 1\n",
            ];
            let [own, b, c] = [0, 1, 2].map(|file| text(heads[file], &entries[file]));
            let mut files = Files([b, c]);
            // An override that replaces nothing is found only when the policy is resolved.
            let parsed = parse::read(&Source::new("a.toml", &own), Some(&mut files));
            prop_assert!(parsed.mistakes.is_empty());
            let policy = parsed.policy.expect("settings");
            let overrides = Overrides::of(&policy);
            for id in policy.ids() {
                let mut homes: Vec<_> = overrides
                    .of_entry(id)
                    .map(|by| (policy.entry(by).source(), policy.entry(by).when))
                    .map(|(source, when)| Home { source, when })
                    .collect();
                homes.sort();
                prop_assert_eq!((homes, overrides.effect(id)), by_the_rule(&policy, id));
            }
        }
    }
}
