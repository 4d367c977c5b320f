//! The shapes that several commands print.

use std::fmt;
use std::io::{self, Write};

use msrgate_filter::MsrIndex;
use msrgate_policy::{Entry, MsrRange, Policy, one_line, registers, shown_json};
use serde::Serialize;

use crate::results::talk;

/// Every JSON answer says which version of its shape it is.
pub(crate) const SCHEMA: u32 = 1;

/// Talk, which goes to stderr. Where that cannot be written, the exit code still tells.
pub(crate) fn say(what: &dyn fmt::Display) {
    talk(&what.to_string());
}

/// One JSON document, indented, on its own lines. Its strings have escapes for what people are not
/// shown.
pub(crate) fn json(out: &mut dyn Write, value: &impl Serialize) -> io::Result<()> {
    let json = serde_json::to_string_pretty(value)?;
    writeln!(out, "{}", shown_json(&json))
}

/// `1 entry`, `2 entries`.
pub(crate) fn count(number: usize, one: &str, several: &str) -> String {
    match number {
        1 => format!("1 {one}"),
        _ => format!("{number} {several}"),
    }
}

/// An MSR's name, or nothing.
pub(crate) fn name(index: MsrIndex) -> Option<&'static str> {
    registers::by_index(index).map(|register| register.name)
}

/// `0xc0000080 IA32_EFER`, or only the index.
pub(crate) fn titled(index: MsrIndex) -> String {
    match name(index) {
        Some(name) => format!("{index} {name}"),
        None => index.to_string(),
    }
}

/// `0x200..=0x20f from IA32_MTRR_PHYSBASE0`: the name is that of the first.
pub(crate) fn titled_range(msrs: MsrRange) -> String {
    match name(msrs.first()) {
        Some(name) if msrs.count() > 1 => format!("{msrs} from {name}"),
        _ if msrs.count() > 1 => msrs.to_string(),
        _ => titled(msrs.first()),
    }
}

/// `line 4: IA32_EFER`, or of an entry of an include `base.toml:4: IA32_EFER`.
pub(crate) fn where_it_stands(policy: &Policy, entry: &Entry) -> String {
    let (line, key) = (entry.place().line, one_line(entry.key()));
    if policy.includers(entry.source()).is_empty() {
        return format!("line {line}: {key}");
    }
    let file = one_line(policy.text(entry.source()).name());
    format!("{file}:{line}: {key}")
}
