//! Suggestions: names similar to a misspelt one.
//!
//! A policy may misspell thousands of names, so a miss must not cost an edit distance to each name
//! of the table. A name cannot be close if its length or its set of characters is too different.
//! The edit distance is then measured for a fixed number of the remaining names: those whose
//! beginnings and ends are most alike.

use std::sync::LazyLock;

use super::super::names::BY_NAME;
use super::alike::alike;
use super::{key, name_at};

/// The maximum number of names suggested.
const SUGGESTIONS: usize = 3;

/// The maximum number of edits between a name and a suggestion. The number of edits is also at most
/// a fifth of the name's length.
const FARTHEST: usize = 4;

/// The maximum number of names to which the edit distance of one misspelt name is measured. No
/// family of registers has more names that differ in one letter.
const MEASURED: usize = 64;

/// The features of a name that can be compared quickly: its length and its set of characters.
struct Shape {
    length: usize,
    letters: u64,
}

impl Shape {
    fn of(key: &[u8]) -> Self {
        let bit = |byte: &u8| 1_u64 << (byte.to_ascii_uppercase() & 63);
        Self {
            length: key.len(),
            letters: key.iter().fold(0, |set, byte| set | bit(byte)),
        }
    }

    /// Returns a lower bound of the number of edits between this name and `other`: an edit changes
    /// the length by at most one, and replaces at most one character.
    fn least_distance(&self, other: &Self) -> usize {
        let missing = (self.letters & !other.letters).count_ones();
        let added = (other.letters & !self.letters).count_ones();
        let letters = missing.max(added) as usize;
        letters.max(self.length.abs_diff(other.length))
    }
}

/// The shapes of all names, in the order of [`BY_NAME`].
static SHAPES: LazyLock<Vec<Shape>> = LazyLock::new(|| {
    let keys = BY_NAME.iter().map(|place| key(name_at(*place)));
    keys.map(Shape::of).collect()
});

/// Returns names close to `name`, one for each register, and each name once: first the names that are equal if the
/// parts that code bases add are left out. If there are none, the names with the smallest edit
/// distance, closest first.
pub(super) fn close_to(name: &str) -> Vec<&'static str> {
    let alike = alike(name).into_iter().take(SUGGESTIONS);
    let mut found: Vec<_> = alike.map(|register| register.name).collect();
    if !found.is_empty() {
        return found;
    }
    let mut rows: Vec<u16> = Vec::new();
    for (row, nth) in closest(key(name)) {
        if found.len() == SUGGESTIONS {
            break;
        }
        let close = name_at((row, nth));
        let is_shared = found.iter().any(|name| name.eq_ignore_ascii_case(close));
        if !rows.contains(&row) && !is_shared {
            rows.push(row);
            found.push(close);
        }
    }
    found
}

/// Returns the places of names that are within the limit of edits from `wanted`, closest first.
fn closest(wanted: &[u8]) -> Vec<(u16, u8)> {
    let capitals = wanted.to_ascii_uppercase();
    let Ok(text) = str::from_utf8(&capitals) else {
        return Vec::new(); // names are text, so none is close to bytes that are not UTF-8
    };
    let limit = (wanted.len() / 5 + 1).min(FARTHEST);
    let shape = Shape::of(wanted);
    let mut candidates: Vec<(usize, (u16, u8))> = BY_NAME
        .iter()
        .zip(SHAPES.iter())
        .filter(|(_, candidate)| shape.least_distance(candidate) <= limit)
        .map(|(place, _)| (shared(wanted, key(name_at(*place))), *place))
        .collect();
    if candidates.len() > MEASURED {
        candidates.select_nth_unstable_by(MEASURED, |(a, _), (b, _)| b.cmp(a));
        candidates.truncate(MEASURED);
    }
    let mut close: Vec<(usize, u8, u16)> = Vec::new();
    for (_, (row, nth)) in candidates {
        let candidate = name_at((row, nth)).to_ascii_uppercase();
        let candidate = candidate.strip_prefix("MSR_").unwrap_or(&candidate);
        let distance = strsim::osa_distance(text, candidate);
        if distance <= limit {
            close.push((distance, nth, row));
        }
    }
    close.sort_unstable();
    close.into_iter().map(|(_, nth, row)| (row, nth)).collect()
}

/// Returns the number of bytes that `a` and `b` share at their beginnings and at their ends.
fn shared(a: &[u8], b: &[u8]) -> usize {
    let same = |(a, b): &(&u8, &u8)| a.eq_ignore_ascii_case(b);
    let start = a.iter().zip(b).take_while(same).count();
    let end = a.iter().rev().zip(b.iter().rev()).take_while(same).count();
    start + end
}
