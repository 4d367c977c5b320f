//! Entries that overlap and disagree.
//!
//! A strict subset wins over what contains it. Two entries that overlap in part, or are equal, have
//! no such order between them: if they disagree, the policy says two things at once.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap};

use msrgate_filter::{Access, Accesses, MsrIndex};
use msrgate_program::{Action, EntryId, MsrRange, MsrSet};

use crate::mistake::{Label, Mistake, Wrong};
use crate::policy::Entry;
use crate::source::quoted;

/// For each entry that conflicts with others, one such conflict at least. In *n* log *n* for
/// entries of one range; those of several, the groups, are compared with all.
pub(super) fn find(entries: &[(EntryId, &Entry)]) -> Vec<Mistake> {
    let (ranges, groups): (Vec<_>, Vec<_>) = entries
        .iter()
        .copied()
        .partition(|(_, entry)| entry.msrs.as_range().is_some());
    let mut found = BTreeMap::<[EntryId; 2], Accesses>::new();
    for access in Access::ALL {
        let this = match access {
            Access::Read => Accesses::Read,
            Access::Write => Accesses::Write,
        };
        let mut pairs = between_ranges(&ranges, access);
        pairs.extend(with_groups(&groups, entries, access));
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
    let entries: HashMap<_, _> = entries.iter().copied().collect();
    let mistake = |([one, other], accesses): ([EntryId; 2], Accesses)| {
        conflict(entries[&one], entries[&other], accesses)
    };
    found.into_iter().map(mistake).collect()
}

/// The entries that are open at one place, by what they say, those that end first in front.
#[derive(Default)]
struct Open<'e> {
    classes: HashMap<&'e Action, usize>,
    places: Vec<BTreeSet<Place>>,
    /// The first of each class.
    heads: BTreeSet<(Place, usize)>,
}

/// The end of a range, its start, and whose it is: of those that end together, the one that starts
/// last comes first.
type Place = (MsrIndex, Reverse<MsrIndex>, EntryId);

impl<'e> Open<'e> {
    fn class(&mut self, action: &'e Action) -> usize {
        let next = self.classes.len();
        let class = *self.classes.entry(action).or_insert(next);
        self.places.resize_with(self.classes.len(), BTreeSet::new);
        class
    }

    /// Forgets what ends before `index`.
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

    /// The first to end of those that say something else.
    fn first_other(&self, class: usize) -> Option<Place> {
        let other = self
            .heads
            .iter()
            .take(2)
            .find(|&&(_, other)| other != class);
        other.map(|&(place, _)| place)
    }
}

/// A sweep over the entries by where they begin. Of those that are open where one begins, one that
/// ends before it does overlaps it in part, since none begins after it.
fn between_ranges(ranges: &[(EntryId, &Entry)], access: Access) -> Vec<[EntryId; 2]> {
    let mut order: Vec<(MsrRange, EntryId, &Action)> = ranges
        .iter()
        .filter_map(|(id, entry)| Some((entry.msrs.as_range()?, *id, entry.action(access)?)))
        .collect();
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

fn with_groups(
    groups: &[(EntryId, &Entry)],
    entries: &[(EntryId, &Entry)],
    access: Access,
) -> Vec<[EntryId; 2]> {
    let mut pairs = Vec::new();
    for &(id, group) in groups {
        for &(other, entry) in entries {
            let disagree = match (group.action(access), entry.action(access)) {
                (Some(one), Some(other)) => one != other,
                _ => false,
            };
            if id != other && disagree && clash(&group.msrs, &entry.msrs) {
                pairs.push([id.min(other), id.max(other)]);
            }
        }
    }
    pairs
}

/// Whether two sets share MSRs, and neither is a strict subset of the other.
fn clash(one: &MsrSet, other: &MsrSet) -> bool {
    let shared: u64 = one.shared(other).map(MsrRange::count).sum();
    shared > 0 && (one == other || shared != one.count() && shared != other.count())
}

fn conflict(first: &Entry, second: &Entry, accesses: Accesses) -> Mistake {
    let (how, help) = if first.msrs == second.msrs {
        let how = match first.msrs.count() {
            1 => format!("are the same MSR, {}", first.msrs.first()),
            _ => "are the same MSRs".to_owned(),
        };
        let help = "keep one of the two; an entry of an include, or one that holds for all processors, is replaced with `override = true`";
        (how, help)
    } else {
        let shared = first.msrs.shared(&second.msrs).next();
        let shared = shared.map_or(String::new(), |shared| format!(", in {shared}"));
        let help = "make one of them part of the other, or end one where the other begins: a strict subset wins, and no order between the two is safe to guess";
        (format!("overlap in part{shared}"), help)
    };
    Mistake {
        wrong: Wrong::Conflict {
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

/// `read = "allow", write = "deny"`, for a label.
pub(crate) fn says(entry: &Entry) -> String {
    let one = |access: Access| match entry.action(access) {
        Some(action) => format!("{access} = {action}"),
        None => format!("{access} = \"inherit\""),
    };
    format!("{}, {}", one(Access::Read), one(Access::Write))
}
