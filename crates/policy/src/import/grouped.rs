//! Entries that together say the same of a whole group, as one that names it.

use msrgate_program::{MsrRange, MsrSet};

use super::draft::Draft;
use crate::registers::{self, Group};

/// The entries, of one range each and in order, with those groups named that make them no more.
///
/// A group stands for registers only if the same is said of all of them, and no comment is lost. What
/// is left of a range that it is taken out of is an entry of its own, so that all entries stay apart.
pub(super) fn grouped(mut entries: Vec<Draft>) -> Vec<Draft> {
    let mut groups: Vec<MsrSet> = registers::groups().iter().filter_map(msrs).collect();
    // The widest first: what it takes, a narrower one cannot.
    groups.sort_by_key(|group| std::cmp::Reverse(group.count()));
    for group in groups.iter().filter(|group| group.count() > 1) {
        if let Some(fewer) = with(&entries, group) {
            entries = fewer;
        }
    }
    entries
}

pub(super) fn msrs(group: &Group) -> Option<MsrSet> {
    MsrSet::new(
        group
            .ranges()
            .filter_map(|range| MsrRange::new(*range.start(), *range.end())),
    )
}

/// The entries with one that names this group, if that is possible and takes no more of them.
fn with(entries: &[Draft], group: &MsrSet) -> Option<Vec<Draft>> {
    let around = |range: &MsrRange| {
        let place = entries.partition_point(|one| one.msrs.first() <= range.first());
        let found = entries.get(place.checked_sub(1)?)?;
        let whole = found.msrs.as_range()?;
        (whole.contains(range.first()) && whole.contains(range.last())).then_some(place - 1)
    };
    let mut places: Vec<usize> = group.ranges().iter().map(around).collect::<Option<_>>()?;
    places.dedup();
    let said = &entries[*places.first()?];
    if said.why.is_some() || !places.iter().all(|&one| entries[one].says_as_much_as(said)) {
        return None;
    }
    let left: Vec<Draft> = places
        .iter()
        .filter_map(|&place| entries[place].msrs.without(group))
        .flat_map(|rest| rest.ranges().to_vec())
        .map(|range| Draft {
            msrs: range.into(),
            ..said.clone()
        })
        .collect();
    if left.len() + 1 > places.len() {
        return None;
    }
    let named = Draft {
        msrs: group.clone(),
        ..said.clone()
    };
    let mut all: Vec<Draft> = entries
        .iter()
        .enumerate()
        .filter(|(place, _)| !places.contains(place))
        .map(|(_, draft)| draft.clone())
        .chain(left)
        .chain([named])
        .collect();
    all.sort_by_key(|draft| draft.msrs.first());
    Some(all)
}
