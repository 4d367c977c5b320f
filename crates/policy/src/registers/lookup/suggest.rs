//! Names close to a misspelt one.
//!
//! A policy may misspell thousands of names, so a miss must not cost an edit distance to each of
//! the table's names: a name whose length or set of characters is too far off cannot be close, and
//! that is a few instructions to see.

use std::sync::LazyLock;

use super::super::names::BY_NAME;
use super::{compare, exact, key, name_at};

/// The most names suggested.
const SUGGESTIONS: usize = 3;

/// The most edits between a name and what was meant. A fifth of the name is the other limit.
const FARTHEST: usize = 4;

/// What can be seen of a name without reading it.
struct Shape {
    length: usize,
    letters: u64,
}

impl Shape {
    fn of(key: &[u8]) -> Self {
        let letters = key.iter().fold(0, |set, byte| {
            set | 1_u64 << (byte.to_ascii_uppercase() & 63)
        });
        Self {
            length: key.len(),
            letters,
        }
    }

    /// At least this many edits lie between this name and `other`: an edit changes the length by one
    /// at most, and replaces one character by one other at most.
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

/// Names close to `wanted`, closest first, one a register.
pub(super) fn close_to(wanted: &[u8]) -> Vec<&'static str> {
    let mut found = without_vendor_prefix(wanted);
    let limit = (wanted.len() / 5 + 1).min(FARTHEST);
    let shape = Shape::of(wanted);
    let capitals = wanted.to_ascii_uppercase();
    let Ok(capitals) = str::from_utf8(&capitals) else {
        return found; // no name has such bytes
    };
    let mut close: Vec<(usize, (u16, u8))> = Vec::new();
    for (place, candidate) in BY_NAME.iter().zip(SHAPES.iter()) {
        if shape.least_distance(candidate) > limit {
            continue;
        }
        let candidate = String::from_utf8_lossy(key(name_at(*place))).to_ascii_uppercase();
        let distance = strsim::osa_distance(capitals, &candidate);
        if distance <= limit {
            close.push((distance, *place));
        }
    }
    close.sort_by_key(|(distance, (row, nth))| (*distance, *nth, *row));
    let mut rows = Vec::new();
    for (_, (row, nth)) in close {
        if found.len() == SUGGESTIONS {
            break;
        }
        if !rows.contains(&row) && !found.contains(&name_at((row, 0))) {
            rows.push(row);
            found.push(name_at((row, nth)));
        }
    }
    found
}

/// The architectural register, when only `IA32_` was forgotten: too many edits to be found as close.
fn without_vendor_prefix(wanted: &[u8]) -> Vec<&'static str> {
    let full = [b"IA32_", wanted].concat();
    let registers = exact(&full);
    let names = registers.iter().flat_map(|register| register.names());
    names
        .filter(|name| compare(key(name), &full).is_eq())
        .take(1)
        .collect()
}
