//! Looks up registers by the names and words that people write.

mod alike;
mod query;
mod suggest;

use std::cmp::Ordering;

use msrgate_filter::MsrIndex;
use msrgate_program::MsrRange;

use super::Register;
use super::names::BY_NAME;
use super::table::TABLE;

pub use query::{Found, search};

/// The registers that a name means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Named {
    /// One register.
    One(&'static Register),
    /// Registers that share the name, sorted by index: at least two. Processor families, or code
    /// bases such as Linux and FreeBSD, use the name for different MSRs. Each register also has a
    /// name of its own.
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
/// optional: `MSR_EFER`, `efer`. Nothing else is trimmed, and an index is not a name. The name that
/// a register has in messages is that register's alone, even if code bases put `MSR_` before it for
/// another: `IA32_PMC0` is 0xc1, and `MSR_IA32_PMC0` may be 0x4c1.
#[must_use]
pub fn by_name(name: &str) -> Named {
    let registers = exact(key(name));
    match registers[..] {
        [] => Named::None(suggest::close_to(name)),
        [register] => Named::One(register),
        _ => match registers
            .iter()
            .find(|register| register.name.eq_ignore_ascii_case(name))
        {
            Some(register) => Named::One(register),
            None => Named::Several(registers),
        },
    }
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
