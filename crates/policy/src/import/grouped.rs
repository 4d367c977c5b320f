//! Replaces entries that together cover a whole group with an entry that names the group.

use msrgate_program::{MsrRange, MsrSet};

use super::draft::Draft;
use crate::registers::{self, Group};

/// Returns the entries with groups in place of their registers, where that does not increase the
/// number of entries. `entries` have one range each and are sorted.
///
/// A group replaces registers only if all of them have the same content and no comment is lost. If
/// a group takes MSRs out of a range, the rest of the range becomes entries of their own, so that
/// no two entries overlap.
pub(super) fn grouped(mut entries: Vec<Draft>) -> Vec<Draft> {
    let mut groups: Vec<MsrSet> = registers::groups().iter().filter_map(msrs).collect();
    // The widest group comes first, so that a narrower group cannot take MSRs from it.
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

/// Returns the entries with an entry that names this group in place of its MSRs. `None`: the
/// entries do not cover the whole group with the same content, or the number of entries would grow.
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
