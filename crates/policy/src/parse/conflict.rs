//! Entries that overlap and disagree.
//!
//! A strict subset wins over what contains it. Two entries that overlap in part, or are equal, have
//! no such order between them: if they disagree, the policy says two things at once.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use msrgate_filter::{Access, Accesses, MsrIndex};

use crate::mistake::{Mistake, meeting, says};
use crate::policy::{Action, Entry};
use crate::source::quoted;

/// For each entry that conflicts with one that begins before it, one such conflict.
///
/// A sweep over the entries by where they begin, in *n* log *n*: at each entry, those that are
/// still open and end before it does overlap it in part, or are equal.
pub(super) fn find(entries: &[&Entry]) -> Vec<Mistake> {
    let mut order: Vec<usize> = (0..entries.len()).collect();
    order.sort_by_key(|&id| {
        (
            entries[id].msrs.first(),
            Reverse(entries[id].msrs.last()),
            id,
        )
    });
    let mut found = BTreeMap::<(usize, usize), Option<Accesses>>::new();
    for access in Access::ALL {
        for pair in conflicts_of(entries, &order, access) {
            let this = match access {
                Access::Read => Accesses::Read,
                Access::Write => Accesses::Write,
            };
            found
                .entry(pair)
                .and_modify(|both| *both = Some(Accesses::Both))
                .or_insert(Some(this));
        }
    }
    found
        .into_iter()
        .filter_map(|((one, other), accesses)| {
            Some(conflict(entries[one], entries[other], accesses?))
        })
        .collect()
}

fn conflicts_of(entries: &[&Entry], order: &[usize], access: Access) -> Vec<(usize, usize)> {
    let mut open = BTreeMap::<Action, BTreeSet<(MsrIndex, Reverse<MsrIndex>, usize)>>::new();
    let mut pairs = Vec::new();
    for &id in order {
        let Some(action) = entries[id].action(access) else {
            continue;
        };
        let msrs = entries[id].msrs;
        for (_, others) in open.iter().filter(|&(&other, _)| other != action) {
            // Those that end before this one begins are done with. Of the rest, one that ends
            // before this one does overlaps it in part, since none begins after it. An equal one
            // comes first among those that end with it.
            let open_here = (msrs.first(), Reverse(MsrIndex::MAX), 0)..;
            if let Some(&(end, Reverse(first), other)) = others.range(open_here).next()
                && (end < msrs.last() || (first, end) == (msrs.first(), msrs.last()))
            {
                pairs.push((id.min(other), id.max(other)));
            }
        }
        let this = (msrs.last(), Reverse(msrs.first()), id);
        open.entry(action).or_default().insert(this);
    }
    pairs
}

fn conflict(first: &Entry, second: &Entry, accesses: Accesses) -> Mistake {
    let help = if first.msrs == second.msrs {
        "keep one of the two".to_owned()
    } else {
        "make one of them part of the other, or end one where the other begins: a strict subset wins, and no order between the two is safe to guess".to_owned()
    };
    Mistake::Conflict {
        first: quoted(&first.key),
        second: quoted(&second.key),
        how: meeting(first.msrs, second.msrs),
        accesses,
        help,
        first_at: first.span,
        first_says: says(first.actions),
        second_at: second.span,
        second_says: says(second.actions),
    }
}
