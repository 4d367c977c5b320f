//! The texts of learnt entries.

use std::fmt::Write as _;

use msrgate_filter::{Access, MsrIndex};

use super::{Fate, MARK, Sighting};
use crate::registers::{self, Named, Register};

/// Returns the `why` of an entry for these accesses of one MSR: the first access, with its vCPU and its
/// time, and the names of the bits that the first write set.
///
/// The text never contains a value that the guest wrote, because a value may be secret. The value
/// of `IA32_LSTAR`, for example, is the address of the guest kernel's code.
pub(super) fn why(seen: &[&Sighting]) -> String {
    let mut why = MARK.to_owned();
    let first = seen
        .iter()
        .min_by_key(|one| (one.first.after.is_none(), one.first.after));
    why += first.map_or("seen", |one| match one.access {
        Access::Read => "first read",
        Access::Write => "first written",
    });
    if let Some(vcpu) = first.and_then(|one| one.first.vcpu) {
        let _ = write!(why, " by vCPU {vcpu}");
    }
    if let Some(vm) = first.and_then(|one| one.first.vm) {
        let _ = write!(why, " of VM {vm}");
    }
    if let Some(after) = first.and_then(|one| one.first.after) {
        let _ = write!(why, " after {:.3} s", after.as_secs_f64());
    }
    if let Some(at) = first.and_then(|one| one.first.at.as_deref()) {
        let _ = write!(why, " at {at}");
    }
    let write = seen.iter().find(|one| one.access == Access::Write);
    if let Some(bits) = write.and_then(|one| bits(one.index, one.first.value?)) {
        let _ = write!(why, "; set {bits}");
    }
    for one in seen.iter().filter(|one| one.fate != Fate::Done) {
        let _ = write!(why, "; {}", fate(one));
    }
    why
}

/// Returns text about these accesses, to be added to the `why` of an entry that was learnt before.
pub(super) fn more(seen: &[&Sighting]) -> String {
    let why = why(seen);
    format!("; {}", why.strip_prefix(MARK).unwrap_or(&why))
}

/// The beginning of the words about an access that KVM refused although it knows the MSR.
pub(super) const INVALID: &str = "KVM refused a ";

fn fate(one: &Sighting) -> String {
    let access = one.access;
    match one.fate {
        Fate::Done => String::new(),
        Fate::Untried => format!("a policy refused the {access}"),
        Fate::Refused => format!("{INVALID}{access} with #GP"),
        Fate::Faulted => format!("KVM or a filter refused the {access} with #GP"),
        Fate::Answered => format!("KVM does not know it, and a policy answered the {access}"),
        Fate::Unknown => format!("{UNKNOWN} the {access}"),
    }
}

/// The beginning of the words about an access of an MSR that KVM does not know.
const UNKNOWN: &str = "KVM does not know it, and refused";

/// Returns true if this `why` says that KVM does not know the MSR, and refused this access.
pub(super) fn is_unknown(why: &str, access: Access) -> bool {
    let wanted = format!("{UNKNOWN} the {access}");
    why.split("; ").any(|clause| clause == wanted)
}

/// Returns true if learning could have written this `why`: each of its clauses has the form of one that [`why`]
/// writes. A `why` of an author that begins with the mark by chance has another form.
pub(super) fn is_learnt(why: &str) -> bool {
    let Some(clauses) = why.strip_prefix(MARK) else {
        return false;
    };
    let mut clauses = clauses.split("; ");
    clauses.next().is_some_and(is_first)
        && clauses.all(|clause| is_first(clause) || is_detail(clause))
}

/// Returns true if a clause of a `why` tells the vCPU, time or place of a first access.
fn is_first(clause: &str) -> bool {
    let begins = ["first read", "first written", "seen"];
    let Some(mut rest) = begins.iter().find_map(|one| clause.strip_prefix(one)) else {
        return false;
    };
    for part in [" by vCPU ", " of VM ", " after "] {
        let Some(number) = rest.strip_prefix(part) else {
            continue;
        };
        rest = number.trim_start_matches(|one: char| one.is_ascii_digit() || one == '.');
        if rest.len() == number.len() {
            return false;
        }
        rest = rest.strip_prefix(" s").unwrap_or(rest);
    }
    let line = rest.strip_prefix(" at ").and_then(|at| at.rsplit_once(':'));
    rest.is_empty() || line.is_some_and(|(_, line)| line.parse::<u64>().is_ok())
}

/// Returns true if a clause of a `why` names bits that a write set, or the fate of an access.
fn is_detail(clause: &str) -> bool {
    let fates = [
        Fate::Untried,
        Fate::Refused,
        Fate::Answered,
        Fate::Faulted,
        Fate::Unknown,
    ];
    let mut all = fates.iter().flat_map(|&of| {
        Access::ALL.map(|access| fate(&Sighting::new(MsrIndex::new(0), access, of)))
    });
    clause.starts_with("set ") || all.any(|wanted| clause == wanted)
}

/// Returns the names of the fields that are not 0 in a value, if the names of the register's fields
/// are known.
fn bits(index: MsrIndex, value: u64) -> Option<String> {
    let register: &Register = registers::by_index(index)?;
    let decoded = register.decode(value);
    let names: Vec<&str> = decoded
        .fields()
        .filter(|(_, held)| *held != 0)
        .map(|(field, _)| field.name)
        .collect();
    (!names.is_empty()).then(|| names.join(", "))
}

/// Returns the keys under which an entry of one MSR can stand, the best first: the MSR's name, its index, the index
/// with leading zeros, and the aliases of its name.
pub(super) fn keys(index: MsrIndex) -> impl Iterator<Item = String> {
    let name = registers::by_index(index).map(|register| register.name.to_owned());
    let aliases = registers::by_index(index).map_or(&[][..], |register| register.aliases);
    let is_own = move |alias: &&str| matches!(registers::by_name(alias), Named::One(one) if one.index == index);
    let aliases = aliases.iter().copied().filter(is_own).map(str::to_owned);
    let padded = [8, 12].map(|width| format!("{:#0width$x}", index.get(), width = width + 2));
    let numbers = [index.to_string()].into_iter().chain(padded);
    name.into_iter().chain(numbers).chain(aliases)
}
