//! Conflicts: entries that overlap and disagree.
//!
//! A strict subset wins over the entry that contains it. Two entries that are equal, or overlap in
//! part, have no such order: if they disagree, the policy contradicts itself.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap};

use msrgate_filter::{Access, Accesses, MsrIndex};
use msrgate_program::{Action, EntryId, MsrRange, MsrSet};

use crate::limits::MAX_MISTAKES;
use crate::mistake::{Label, Mistake, MistakeKind};
use crate::policy::{Entry, Policy};
use crate::source::quoted;

/// Returns conflicts between these entries, which hold together on some processors: at least one
/// for each entry that has a conflict, up to [`MAX_MISTAKES`]. The time for *n* entries grows as
/// *n* log *n*.
pub(super) fn find(policy: &Policy, groups: &Groups, entries: &[EntryId]) -> Vec<Mistake> {
    let mut found = BTreeMap::<[EntryId; 2], Accesses>::new();
    for access in Access::ALL {
        let this = match access {
            Access::Read => Accesses::Read,
            Access::Write => Accesses::Write,
        };
        let mut pairs = between_ranges(policy, entries, access);
        pairs.extend(groups.conflicts(policy, entries, access));
        for pair in pairs {
            found
                .entry(pair)
                .and_modify(|before| {
                    if *before != this {
                        *before = Accesses::Both;
                    }
                })
                .or_insert(this);
        }
    }
    let mistake = |([one, other], accesses): ([EntryId; 2], Accesses)| {
        conflict(policy.entry(one), policy.entry(other), accesses)
    };
    found.into_iter().take(MAX_MISTAKES).map(mistake).collect()
}

/// The entries that contain the current MSR of the sweep, in classes: one class for each action. In
/// a class, the entry that ends first comes first.
#[derive(Default)]
struct Open<'e> {
    classes: HashMap<&'e Action, usize>,
    places: Vec<BTreeSet<Place>>,
    /// Of each class, the entry that ends first.
    heads: BTreeSet<(Place, usize)>,
}

/// The end of a range, its start, and its entry. If several ranges end together, the one that
/// starts last comes first.
type Place = (MsrIndex, Reverse<MsrIndex>, EntryId);

impl<'e> Open<'e> {
    fn class(&mut self, action: &'e Action) -> usize {
        let next = self.classes.len();
        let class = *self.classes.entry(action).or_insert(next);
        self.places.resize_with(self.classes.len(), BTreeSet::new);
        class
    }

    /// Removes the entries that end before `index`.
    fn close_before(&mut self, index: MsrIndex) {
        while let Some(&(place, class)) = self.heads.first()
            && place.0 < index
        {
            self.heads.pop_first();
            self.places[class].pop_first();
            self.heads
                .extend(self.places[class].first().map(|&head| (head, class)));
        }
    }

    fn insert(&mut self, class: usize, place: Place) {
        if let Some(&head) = self.places[class].first() {
            self.heads.remove(&(head, class));
        }
        self.places[class].insert(place);
        self.heads
            .extend(self.places[class].first().map(|&head| (head, class)));
    }

    /// Returns, of the entries in all classes except `class`, the entry that ends first.
    fn first_other(&self, class: usize) -> Option<Place> {
        let other = self
            .heads
            .iter()
            .take(2)
            .find(|&&(_, other)| other != class);
        other.map(|&(place, _)| place)
    }
}

/// Returns pairs of ranges that conflict. The sweep visits the entries by their starts. An open
/// entry is one that contains the current MSR. If an open entry ends before the new entry, the two
/// overlap in part, because the open entry does not start later.
fn between_ranges(policy: &Policy, entries: &[EntryId], access: Access) -> Vec<[EntryId; 2]> {
    let range = |&id: &EntryId| {
        let entry = policy.entry(id);
        Some((entry.msrs.as_range()?, id, entry.action(access)?))
    };
    let mut order: Vec<(MsrRange, EntryId, &Action)> = entries.iter().filter_map(range).collect();
    order.sort_by_key(|(range, id, _)| (range.first(), Reverse(range.last()), *id));
    let mut open = Open::default();
    let mut pairs = Vec::new();
    for (range, id, action) in order {
        let class = open.class(action);
        open.close_before(range.first());
        if let Some((end, Reverse(first), other)) = open.first_other(class)
            && (end < range.last() || (first, end) == (range.first(), range.last()))
        {
            pairs.push([id.min(other), id.max(other)]);
        }
        open.insert(class, (range.last(), Reverse(range.first()), id));
    }
    pairs
}

/// The groups of a policy: entries of several ranges, each with the entries that it may conflict
/// with on some processors. A policy may name the same group in many entries, so the entries with
/// the same set of MSRs are kept together. The language has few such sets.
pub(super) struct Groups(Vec<Group>);

struct Group {
    /// The entries with the group's MSRs.
    entries: Vec<EntryId>,
    /// The entries that share MSRs with the group, and neither contain it strictly nor lie
    /// strictly within it.
    clashing: Vec<EntryId>,
}

impl Groups {
    pub(super) fn of(policy: &Policy) -> Self {
        let mut by_msrs = HashMap::<&MsrSet, Vec<EntryId>>::new();
        for id in policy.ids() {
            let msrs = &policy.entry(id).msrs;
            if msrs.as_range().is_none() {
                by_msrs.entry(msrs).or_default().push(id);
            }
        }
        let clashing = |msrs| {
            let clashes = |id: &EntryId| clash(&policy.entry(*id).msrs, msrs);
            policy.ids().filter(clashes).collect()
        };
        let groups = by_msrs.into_iter().map(|(msrs, entries)| Group {
            entries,
            clashing: clashing(msrs),
        });
        let mut groups: Vec<_> = groups.collect();
        groups.sort_by_key(|group| group.entries.first().copied());
        Self(groups)
    }

    /// Returns the conflicts of the groups among these entries, up to [`MAX_MISTAKES`]. Except for
    /// a few steps for each group, each step visits an entry once or finds a conflict.
    fn conflicts(&self, policy: &Policy, entries: &[EntryId], access: Access) -> Vec<[EntryId; 2]> {
        let mut pairs = Vec::new();
        if self.0.is_empty() {
            return pairs;
        }
        let mut holds = vec![false; policy.entries().len()];
        for id in entries {
            holds[id.number()] = true;
        }
        let said = |id: EntryId| {
            let action = policy.entry(id).action(access)?;
            holds[id.number()].then_some(action)
        };
        for group in &self.0 {
            let mut by_action = BTreeMap::<&Action, Vec<EntryId>>::new();
            for &id in &group.clashing {
                if let Some(action) = said(id) {
                    by_action.entry(action).or_default().push(id);
                }
            }
            for &id in &group.entries {
                let Some(own) = said(id) else { continue };
                let others = by_action.iter().filter(|(action, _)| **action != own);
                for &other in others.flat_map(|(_, others)| others) {
                    if pairs.len() >= MAX_MISTAKES {
                        return pairs;
                    }
                    pairs.push([id.min(other), id.max(other)]);
                }
            }
        }
        pairs
    }
}

/// Returns true if two sets share MSRs, and neither is a strict subset of the other. The test is
/// fast if the first set has few ranges.
fn clash(one: &MsrSet, other: &MsrSet) -> bool {
    let shared: u64 = one.shared(other).map(MsrRange::count).sum();
    shared > 0 && (one == other || shared != one.count() && shared != other.count())
}

fn conflict(first: &Entry, second: &Entry, accesses: Accesses) -> Mistake {
    let (how, help) = if first.msrs == second.msrs {
        let how = match first.msrs.count() {
            1 => format!("are the same MSR ({})", first.msrs.first()),
            _ => "are the same MSRs".to_owned(),
        };
        let help = match (first.when, second.when) {
            (None, Some(_)) | (Some(_), None) => {
                "write `override = true` in the entry of the `[[when]]`: it then replaces the other entry"
            }
            (one, other) if one != other => {
                "both `[[when]]`s hold on some processors: give both entries the same actions, or narrow one `cpu` so that no processor matches both"
            }
            _ if first.source() != second.source() => {
                "delete one of the entries, or write `override = true` in the entry of the including file: it then replaces the included entry"
            }
            _ => "delete one of the entries",
        };
        (how, help.to_owned())
    } else {
        let shared = first.msrs.shared(&second.msrs).next();
        let shared = shared.map_or(String::new(), |shared| format!(" ({shared})"));
        (
            format!("overlap only in part{shared}"),
            parted(first, second),
        )
    };
    Mistake {
        kind: MistakeKind::Conflict {
            first: quoted(&first.key),
            second: quoted(&second.key),
            how,
            accesses,
            help,
        },
        places: vec![
            Label::saying(first.at, says(first)),
            Label::saying(second.at, says(second)),
        ],
    }
}

/// Returns advice on how to separate two entries that overlap.
fn parted(first: &Entry, second: &Entry) -> String {
    const WHY: &str = "the narrower of two entries wins only if it lies wholly within the other";
    let ranges = (first.msrs.as_range(), second.msrs.as_range());
    let (Some(one), Some(other)) = ranges else {
        return format!(
            "write ranges in place of the group, or let the range contain the whole group or no part of it: {WHY}"
        );
    };
    let (low, high) = if one.first() <= other.first() {
        ((first, one), (second, other))
    } else {
        ((second, other), (first, one))
    };
    let below = MsrRange::below(low.1.first().get().into(), high.1.first().get().into());
    let above = u64::from(low.1.last().get()) + 1;
    let above = MsrRange::below(above, u64::from(high.1.last().get()) + 1);
    match (below, above) {
        (Some(below), Some(above)) => format!(
            "write `\"{below}\"` in place of `{}`, or `\"{above}\"` in place of `{}`: {WHY}",
            quoted(&low.0.key),
            quoted(&high.0.key)
        ),
        _ => format!("let one range end before the other begins: {WHY}"),
    }
}

/// Returns an entry's actions for a label, such as `read = "allow", write = "deny"`.
pub(crate) fn says(entry: &Entry) -> String {
    let one = |access: Access| match entry.action(access) {
        Some(action) => format!("{access} = {action}"),
        None => format!("{access} = \"inherit\""),
    };
    format!("{}, {}", one(Access::Read), one(Access::Write))
}
