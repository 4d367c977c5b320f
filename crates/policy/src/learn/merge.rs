//! Adds what a guest needs to a policy, without loosening what its author decided.

use std::collections::{BTreeMap, BTreeSet};

use msrgate_filter::{Access, MsrIndex};
use msrgate_program::{Action, DecidedBy, Rule, Variant};

use super::entry;
use super::runs::{News, Runs};
use super::{Fate, Kept, KeptBy, LearnError, Learnt, MARK, Notes, Sighting};
use crate::compile::{Compiled, compile};
use crate::format::{Edited, checked};
use crate::grant::spot::{Spot, only, spot};
use crate::parse::Includes;
use crate::policy::{Entry, Firmness, OWN, Policy};
use crate::resolve::parse;
use crate::source::Source;

/// The comment above the learnt entries that do not allow any access.
const REFUSED: &str = "# The guest got #GP for these accesses where they were learnt, and went on.";

/// The comment above the learnt entries for MSRs that KVM knows, and of which KVM refused at least one access with
/// #GP.
const INVALID: &str = "# KVM knows these MSRs, and refused at least one access with #GP: for its value, or since the guest's processor lacks them.";

/// Adds what a run of a guest needs to a policy.
///
/// An access that the policy refuses by its `default`, or by an entry that was learnt, is allowed
/// by a learnt entry for this MSR alone. An access that an entry of the author refuses stays
/// refused, and is listed. If KVM refused the access because it does not know the MSR, or if a
/// trace shows #GP for every such access, the entry says `deny` without events, so that the guest
/// gets #GP on every host, as it did in this run. Comments and all else that the author wrote stay.
///
/// # Errors
/// [`LearnError`]: the policy has mistakes or does not fit a filter, without or with the learnt
/// entries.
pub fn learn(
    policy: &Source,
    includes: &mut dyn Includes,
    seen: &[Sighting],
    notes: &Notes,
) -> Result<Learnt, LearnError> {
    changed(policy, includes, seen, Authors::Keep, |edited, news| {
        let runs = Runs::of(edited.head()).after(news);
        runs.put(edited.head());
        Runs::put_notes(edited.head(), notes);
    })
}

/// Adds what a guest needs to a policy, as [`learn`] does, without counting a run. For the MSRs in `named`, an
/// access is also allowed if an entry of the author refuses it, unless that entry is `final`. The places in
/// [`Learnt::kept`] are those of the new text.
///
/// # Errors
/// As [`learn`].
pub fn accept(
    policy: &Source,
    includes: &mut dyn Includes,
    seen: &[Sighting],
    named: &BTreeSet<MsrIndex>,
) -> Result<Learnt, LearnError> {
    let accept_in = |policy: &Source, includes: &mut dyn Includes| {
        changed(policy, includes, seen, Authors::Change(named), |_, _| {})
    };
    let mut learnt = accept_in(policy, includes)?;
    if !learnt.added.is_empty() && !learnt.kept.is_empty() {
        // The new entries may have moved the lines of others.
        learnt.kept = accept_in(&policy.with_text(&learnt.text), includes)?.kept;
    }
    Ok(learnt)
}

/// The treatment of entries that an author has written.
#[derive(Clone, Copy)]
enum Authors<'n> {
    /// They stay as they are.
    Keep,
    /// The author asks for the change. What an entry refuses is allowed only for these MSRs.
    Change(&'n BTreeSet<MsrIndex>),
}

fn changed(
    policy: &Source,
    includes: &mut dyn Includes,
    seen: &[Sighting],
    authors: Authors<'_>,
    head: impl FnOnce(&mut Edited, News),
) -> Result<Learnt, LearnError> {
    let before = compile(parse(policy, includes)?)?;
    let mut plan = Plan::of(&before, seen, authors);
    let mut edited = Edited::of(policy)?;
    plan.write(&mut edited, &before);
    let news = if plan.msrs.is_empty() {
        News::None
    } else {
        News::Some
    };
    head(&mut edited, news);
    let runs = Runs::of(edited.head());
    let text = checked(policy, edited.into_text())?;
    compile(parse(&policy.with_text(&text), includes)?)?;
    Ok(Learnt {
        text,
        added: plan.with(&Action::Allow),
        unknown: plan.with(&Action::Deny),
        kept: plan.kept,
        runs: runs.all,
        runs_without_news: runs.without_news,
    })
}

/// The changes that learning makes to a policy.
#[derive(Default)]
struct Plan<'s> {
    msrs: BTreeMap<MsrIndex, Change<'s>>,
    kept: Vec<Kept>,
}

/// The change that learning makes to the entry of one MSR.
#[derive(Default)]
struct Change<'s> {
    /// The new actions, indexed by [`Access`]. `None`: the direction stays as it is.
    actions: [Option<Action>; 2],
    /// The accesses because of which the entry changes.
    seen: Vec<&'s Sighting>,
    /// The place of the change, if the author asks for it.
    spot: Option<Spot<'s>>,
}

/// The state of an access before learning: the policy's decision about an access that the guest
/// made.
enum Standing<'p> {
    /// The policy need not change for this access.
    Met,
    /// The default, a learnt entry, or an entry of the author whose MSR is named refuses the access, so learning
    /// may allow it: at this place, if the author asks for the change.
    Open(Option<Spot<'p>>),
    /// An entry of the policy's author refuses the access, so learning does not allow it.
    Kept(KeptBy),
}

impl<'s> Plan<'s> {
    fn of(before: &'s Compiled, seen: &'s [Sighting], authors: Authors<'_>) -> Self {
        let mut by_access = BTreeMap::<_, Vec<&Sighting>>::new();
        for one in seen {
            by_access
                .entry((one.index, one.access))
                .or_default()
                .push(one);
        }
        let mut plan = Self::default();
        for ((index, access), seen) in by_access {
            // The fate that counts is the best one: if KVM carried out the access once, then KVM
            // knows the register.
            let fate = seen.iter().map(|one| one.fate).min().unwrap_or(Fate::Done);
            match standing(before, index, access, fate, authors) {
                Standing::Met => {}
                Standing::Kept(by) => plan.kept.push(Kept { index, access, by }),
                Standing::Open(spot) => {
                    let change = plan.msrs.entry(index).or_default();
                    change.spot = change.spot.or(spot);
                    change.actions[access as usize] = Some(match fate {
                        Fate::Done | Fate::Untried | Fate::Refused | Fate::Answered => {
                            Action::Allow
                        }
                        Fate::Faulted | Fate::Unknown => Action::Deny,
                    });
                    change.seen.extend(seen);
                }
            }
        }
        plan
    }

    /// The accesses that get this action, by index.
    fn with(&self, wanted: &Action) -> Vec<(MsrIndex, Access)> {
        let all = self.msrs.iter().flat_map(|(&index, change)| {
            Access::ALL.map(|access| (index, access, &change.actions[access as usize]))
        });
        all.filter(|(.., action)| action.as_ref() == Some(wanted))
            .map(|(index, access, _)| (index, access))
            .collect()
    }

    /// Writes the changes into the text. Learnt entries stand below the author's entries, sorted by
    /// MSR. Learnt entries for MSRs that KVM does not know come last.
    fn write(&mut self, edited: &mut Edited, before: &Compiled) {
        if self.msrs.is_empty() {
            return;
        }
        let learnt = learnt_entries(before);
        let mut places: BTreeMap<String, (Class, MsrIndex)> = learnt
            .iter()
            .map(|(index, entry)| (entry.key().to_owned(), (Class::of(entry), *index)))
            .collect();
        let mut unwritten = Vec::new();
        for (&index, change) in &self.msrs {
            let key = match learnt.get(&index) {
                Some(entry) => Some(change.write_into(edited, entry)),
                None if change.write_into_authors(edited) => continue,
                None => change.write_new(edited, before, index),
            };
            let Some(key) = key else {
                unwritten.push(index);
                continue;
            };
            let place = places.entry(key).or_insert((change.class(), index));
            place.0 = place.0.min(change.class());
        }
        for index in unwritten {
            self.keep(index);
        }
        edited.arrange(|key| places.get(key).copied());
        for (class, heading) in [(Class::Invalid, INVALID), (Class::Refused, REFUSED)] {
            let of_class = places.iter().filter(|(_, place)| place.0 == class);
            let first = of_class.min_by_key(|(_, place)| **place);
            edited.set_heading(first.map(|(key, _)| key.as_str()), heading);
        }
    }

    /// Moves the accesses of an MSR to the list of refusals that are kept, because no key is left
    /// for an entry of the MSR.
    fn keep(&mut self, index: MsrIndex) {
        let change = self.msrs.remove(&index).unwrap_or_default();
        for access in Access::ALL {
            if change.actions[access as usize].is_some() {
                let by = KeptBy::KeysTaken;
                self.kept.push(Kept { index, access, by });
            }
        }
        self.kept
            .sort_by_key(|kept| (kept.index, kept.access as u8));
    }
}

impl Change<'_> {
    fn class(&self) -> Class {
        if !self.actions.contains(&Some(Action::Allow)) {
            return Class::Refused;
        }
        let is_invalid = self.seen.iter().any(|one| one.fate == Fate::Refused);
        if is_invalid {
            Class::Invalid
        } else {
            Class::Allowed
        }
    }

    /// Changes the entry of the author that decides about this MSR alone, if there is one.
    fn write_into_authors(&self, edited: &mut Edited) -> bool {
        let Some(Spot::Entry(entry)) = self.spot else {
            return false;
        };
        let words = Access::ALL.map(|access| entry.action(access).map_or("inherit", Action::word));
        edited.spell_out(entry.key(), words);
        for access in Access::ALL {
            if let Some(action) = &self.actions[access as usize] {
                edited.set(
                    entry.key(),
                    &access.to_string(),
                    Some(action.word().to_owned()),
                );
            }
        }
        true
    }

    /// Changes a learnt entry, and returns its key.
    fn write_into(&self, edited: &mut Edited, entry: &Entry) -> String {
        let key = entry.key();
        for access in Access::ALL {
            if let Some(action) = &self.actions[access as usize] {
                edited.set(key, &access.to_string(), Some(action.word().to_owned()));
            }
        }
        if self.actions.contains(&Some(Action::Allow)) {
            edited.set(key, "log", None);
        }
        let why = entry.why().unwrap_or(MARK).to_owned() + &entry::more(&self.seen);
        edited.set(key, "why", Some(why));
        key.to_owned()
    }

    /// Adds an entry, and returns its key. In a direction that the guest did not use, the new entry
    /// changes no decision.
    fn write_new(&self, edited: &mut Edited, before: &Compiled, index: MsrIndex) -> Option<String> {
        let key = entry::keys(index).find(|key| !edited.has(key))?;
        let replaced = match self.spot {
            Some(Spot::Override(entry)) => Some(entry),
            _ => None,
        };
        for access in Access::ALL {
            let is_by_default = |rule: Rule<'_>| rule.by == DecidedBy::Default;
            let mut rules = before.variants().iter().map(|one| one.rule(index, access));
            let word = match &self.actions[access as usize] {
                Some(action) => action.word(),
                None => match replaced {
                    Some(entry) => entry.action(access).map_or("inherit", Action::word),
                    None => match before.policy().default_action() {
                        // These are the words that letters stand for.
                        default @ (Action::Allow | Action::Deny) if rules.all(is_by_default) => {
                            default.word()
                        }
                        _ => "inherit",
                    },
                },
            };
            edited.set(&key, &access.to_string(), Some(word.to_owned()));
        }
        if !self.actions.contains(&Some(Action::Allow)) {
            edited.set(&key, "log", Some("none".to_owned()));
        }
        if replaced.is_some() {
            edited.set_override(&key);
        }
        edited.set(&key, "why", Some(entry::why(&self.seen)));
        Some(key)
    }
}

/// The paragraph of the policy's text in which a learnt entry stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Class {
    Allowed,
    Invalid,
    Refused,
}

impl Class {
    fn of(entry: &Entry) -> Self {
        let is_allowed = Access::ALL.map(|access| entry.action(access) == Some(&Action::Allow));
        let has_invalid = |why: &str| why.contains(entry::INVALID);
        if is_allowed.contains(&true) {
            if entry.why().is_some_and(has_invalid) {
                Self::Invalid
            } else {
                Self::Allowed
            }
        } else {
            Self::Refused
        }
    }
}

/// Returns the entries that were learnt before, by MSR.
fn learnt_entries(before: &Compiled) -> BTreeMap<MsrIndex, &Entry> {
    let policy = before.policy();
    let entries = policy.ids().map(|id| policy.entry(id));
    entries
        .filter(|entry| is_learnt(entry))
        .map(|entry| (entry.msrs().first(), entry))
        .collect()
}

/// The part of a policy that refuses an access. On this part depends how the policy can be changed
/// to allow the access.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub enum RefusedBy<'p> {
    /// The policy's `default`.
    Default,
    /// An entry that was learnt for another access, or without knowing of KVM's answer.
    Learnt(&'p Entry),
    /// An entry that was learnt with `deny`, since KVM does not know the MSR: the guest got #GP without a policy, too.
    LearntAsUnknown(&'p Entry),
    /// An entry of the policy's author, or of the author of an include.
    Author(&'p Entry),
}

/// Returns the part of the policy that decides an access, as if the access were refused.
#[must_use]
pub fn refused_by<'p>(
    policy: &'p Policy,
    variant: &Variant,
    index: MsrIndex,
    access: Access,
) -> RefusedBy<'p> {
    let by = variant.rule(index, access).by;
    let entry = match by {
        DecidedBy::Entry(id) => Some(policy.entry(id)),
        _ => None,
    };
    if entry.is_none_or(is_learnt)
        && let Spot::Final(entry) = spot(policy, entry, index, only(access))
    {
        return RefusedBy::Author(entry);
    }
    let Some(entry) = entry else {
        return RefusedBy::Default;
    };
    match Class::of(entry) {
        _ if !is_learnt(entry) => RefusedBy::Author(entry),
        Class::Refused
            if entry
                .why()
                .is_some_and(|why| entry::is_unknown(why, access)) =>
        {
            RefusedBy::LearntAsUnknown(entry)
        }
        _ => RefusedBy::Learnt(entry),
    }
}

fn is_learnt(entry: &Entry) -> bool {
    entry.source() == OWN
        && entry.when().is_none()
        && entry.firmness == Firmness::Loosenable
        && entry.msrs().count() == 1
        && entry.why().is_some_and(entry::is_learnt)
}

fn standing<'p>(
    before: &'p Compiled,
    index: MsrIndex,
    access: Access,
    fate: Fate,
    authors: Authors<'_>,
) -> Standing<'p> {
    let policy = before.policy();
    let is_named = matches!(authors, Authors::Change(named) if named.contains(&index));
    let mut standing = Standing::Met;
    for rule in before.variants().iter().map(|one| one.rule(index, access)) {
        let is_refused = matches!(rule.action, Action::Deny | Action::Kill);
        let by = match rule.by {
            // An answer may depend on the value, and be a refusal.
            DecidedBy::Entry(id) if is_named && !is_refused && *rule.action != Action::Allow => {
                return Standing::Kept(by_hand(policy, policy.entry(id)));
            }
            _ if !is_refused => continue,
            DecidedBy::Kvm => continue,
            DecidedBy::Default if index == MsrIndex::MAX => {
                return Standing::Kept(KeptBy::LastMsr);
            }
            DecidedBy::Default => None,
            // Without a policy, the guest got a #GP, too. This entry refuses it, too, so
            // nothing changes.
            DecidedBy::Entry(_) if matches!(fate, Fate::Faulted | Fate::Unknown) => continue,
            DecidedBy::Entry(id) => match policy.entry(id) {
                entry if is_named || is_learnt(entry) => Some(entry),
                entry => return Standing::Kept(kept_by(policy, entry)),
            },
        };
        match spot(policy, by, index, only(access)) {
            Spot::Final(entry) => return Standing::Kept(kept_by(policy, entry)),
            Spot::ByHand(entry) | Spot::When(entry) => {
                return Standing::Kept(by_hand(policy, entry));
            }
            spot @ (Spot::Entry(_) | Spot::New | Spot::Override(_)) => {
                let is_asked = matches!(authors, Authors::Change(_));
                standing = Standing::Open(is_asked.then_some(spot));
            }
        }
    }
    standing
}

fn kept_by(policy: &Policy, entry: &Entry) -> KeptBy {
    KeptBy::Entry {
        file: policy.text(entry.source()).name().to_owned(),
        place: entry.place(),
        key: entry.key().to_owned(),
    }
}

fn by_hand(policy: &Policy, entry: &Entry) -> KeptBy {
    KeptBy::ByHand {
        file: policy.text(entry.source()).name().to_owned(),
        place: entry.place(),
        key: entry.key().to_owned(),
    }
}

#[cfg(test)]
mod tests;
