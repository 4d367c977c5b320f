//! Looks up registers by the names and words that people write.

mod suggest;

use std::cmp::Ordering;

use msrgate_filter::MsrIndex;
use msrgate_program::MsrRange;

use super::names::BY_NAME;
use super::table::TABLE;
use super::{Register, group};

/// The registers that a name means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Named {
    /// One register.
    One(&'static Register),
    /// Registers of different processor families that share the name, sorted by index: at least
    /// two. No list of higher rank, such as the SDM's list of architectural MSRs, has the name.
    /// Each register also has a name of its own.
    Several(Vec<&'static Register>),
    /// No register. The list has similar names, closest first, and may be empty.
    None(Vec<&'static str>),
}

/// Returns the register with this index. `None`: the register table has no name for the index.
#[must_use]
pub fn by_index(index: MsrIndex) -> Option<&'static Register> {
    let place = TABLE.binary_search_by_key(&index, |register| register.index);
    place.ok().map(|place| &TABLE[place])
}

/// Returns the index and the name of an MSR, such as `0xc0000080 IA32_EFER`, or only the index.
#[must_use]
pub fn titled(index: MsrIndex) -> String {
    match by_index(index) {
        Some(register) => format!("{index} {}", register.name),
        None => index.to_string(),
    }
}

/// Returns a range with the name of its first MSR, such as
/// `0x200..=0x20f from IA32_MTRR_PHYSBASE0`.
#[must_use]
pub fn titled_range(msrs: MsrRange) -> String {
    match by_index(msrs.first()) {
        Some(register) if msrs.count() > 1 => format!("{msrs} from {}", register.name),
        _ if msrs.count() > 1 => msrs.to_string(),
        _ => titled(msrs.first()),
    }
}

/// Returns the registers that `name` means. Case does not matter, and the prefix `MSR_` is
/// optional: `MSR_EFER`, `efer`. Nothing else is trimmed, and an index is not a name.
#[must_use]
pub fn by_name(name: &str) -> Named {
    let registers = exact(key(name));
    match registers[..] {
        [] => Named::None(suggest::close_to(key(name))),
        [register] => Named::One(register),
        _ => Named::Several(registers),
    }
}

/// Returns the registers that match `query`, best first, then by index. A query is an index
/// (`0x8b`, or the first digits of one), a group (`@mtrr`), or words that all occur in a name or
/// in the summary.
#[must_use]
pub fn search(query: &str) -> Vec<&'static Register> {
    let query = query.trim();
    if query.starts_with('@') {
        return group(query).map_or(Vec::new(), |group| group.registers().collect());
    }
    let query = query.to_ascii_lowercase();
    if query.starts_with("0x") && query.len() > 2 {
        return by_digits(&query);
    }
    if query.is_empty() {
        return Vec::new();
    }
    let mut found: Vec<(Fit, &Register)> = TABLE
        .iter()
        .filter_map(|register| Some((fit(register, &query)?, register)))
        .collect();
    found.sort_by_key(|(fit, register)| (*fit, register.index));
    found.into_iter().map(|(_, register)| register).collect()
}

/// The quality of a match, best first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Fit {
    /// The query equals one of the register's names.
    Exact,
    /// The register's own name contains all words of the query.
    Name,
    /// An alias of the register contains all words of the query.
    Alias,
    /// The register's summary contains all words of the query, or its names and summary contain
    /// them together.
    Summary,
}

/// Returns the quality of the match of `query`, which is in small letters.
fn fit(register: &Register, query: &str) -> Option<Fit> {
    let wanted = key(query);
    if register
        .names()
        .any(|name| compare(key(name), wanted).is_eq())
    {
        return Some(Fit::Exact);
    }
    let has_all = |text: &str| query.split_whitespace().all(|word| text.contains(word));
    if has_all(&register.name.to_ascii_lowercase()) {
        return Some(Fit::Name);
    }
    let mut all = String::new();
    for alias in register.aliases {
        let alias = alias.to_ascii_lowercase();
        if has_all(&alias) {
            return Some(Fit::Alias);
        }
        all.push_str(&alias);
        all.push(' ');
    }
    all.push_str(&register.name.to_ascii_lowercase());
    all.push(' ');
    all.push_str(&register.summary.to_ascii_lowercase());
    has_all(&all).then_some(Fit::Summary)
}

/// Returns the register with the index in `digits`, else all registers whose index starts with
/// `digits`.
fn by_digits(digits: &str) -> Vec<&'static Register> {
    let number = u32::from_str_radix(&digits[2..], 16).ok();
    if let Some(register) = number.and_then(|number| by_index(MsrIndex::new(number))) {
        return vec![register];
    }
    let starts = |register: &&Register| register.index.to_string().starts_with(digits);
    TABLE.iter().filter(starts).collect()
}

/// Returns the registers called `wanted`, sorted by index.
fn exact(wanted: &[u8]) -> Vec<&'static Register> {
    let start = BY_NAME.partition_point(|place| compare(key(name_at(*place)), wanted).is_lt());
    let same = BY_NAME[start..].iter();
    same.take_while(|place| compare(key(name_at(**place)), wanted).is_eq())
        .map(|(row, _)| &TABLE[usize::from(*row)])
        .collect()
}

/// Returns the name at a place of [`BY_NAME`].
fn name_at((row, nth): (u16, u8)) -> &'static str {
    let register = &TABLE[usize::from(row)];
    match nth.checked_sub(1) {
        None => register.name,
        Some(alias) => register.aliases[usize::from(alias)],
    }
}

/// Returns the key under which a name is looked up: the name without `MSR_`. The key keeps the
/// name's case, which [`compare`] ignores.
fn key(name: &str) -> &[u8] {
    let name = name.as_bytes();
    match name.split_at_checked(4) {
        Some((prefix, rest)) if prefix.eq_ignore_ascii_case(b"MSR_") => rest,
        _ => name,
    }
}

/// Compares keys as if they were in capitals.
fn compare(a: &[u8], b: &[u8]) -> Ordering {
    let a = a.iter().map(u8::to_ascii_uppercase);
    a.cmp(b.iter().map(u8::to_ascii_uppercase))
}
