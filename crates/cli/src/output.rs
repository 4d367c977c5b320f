//! The shapes that several commands print.

use std::fmt;
use std::io::{self, Write};

use msrgate_filter::MsrIndex;
use msrgate_policy::{Entry, Policy, one_line, registers, shown_json, shown_name};
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

/// `line 4: IA32_EFER`, or of an entry of an include `base.toml:4: IA32_EFER`.
pub(crate) fn where_it_stands(policy: &Policy, entry: &Entry) -> String {
    let (line, key) = (entry.place().line, one_line(entry.key()));
    if policy.includers(entry.source()).is_empty() {
        return format!("line {line}: {key}");
    }
    let file = shown_name(policy.text(entry.source()).name());
    format!("{file}:{line}: {key}")
}
