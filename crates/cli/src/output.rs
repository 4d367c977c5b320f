//! The forms of output that several commands share.

use std::fmt;
use std::io::{self, Write};

use msrgate_filter::MsrIndex;
use msrgate_policy::{Entry, Policy, one_line, registers, shown_json, shown_name};
use serde::Serialize;

use crate::results::talk;

/// The version of the JSON format, which every JSON answer contains.
pub(crate) const SCHEMA: u32 = 1;

/// Prints a message to standard error. An error of printing is ignored, because the exit code gives the
/// answer.
pub(crate) fn say(what: &dyn fmt::Display) {
    talk(&what.to_string());
}

/// Prints a JSON document with indented lines. Characters that people would not see are escaped in its
/// strings.
pub(crate) fn json(out: &mut dyn Write, value: &impl Serialize) -> io::Result<()> {
    let json = serde_json::to_string_pretty(value)?;
    writeln!(out, "{}", shown_json(&json))
}

/// Returns a number with its noun, such as `1 entry` or `2 entries`.
pub(crate) fn count(number: usize, one: &str, several: &str) -> String {
    match number {
        1 => format!("1 {one}"),
        _ => format!("{number} {several}"),
    }
}

/// Returns the name of an MSR, or `None` if the register table has no name for it.
pub(crate) fn name(index: MsrIndex) -> Option<&'static str> {
    registers::by_index(index).map(|register| register.name)
}

/// Returns the place of a policy's entry in its file, such as `line 4: IA32_EFER`, or
/// `base.toml:4: IA32_EFER` for an included one.
pub(crate) fn where_it_stands(policy: &Policy, entry: &Entry) -> String {
    let (line, key) = (entry.place().line, one_line(entry.key()));
    if policy.includers(entry.source()).is_empty() {
        return format!("line {line}: {key}");
    }
    let file = shown_name(policy.text(entry.source()).name());
    format!("{file}:{line}: {key}")
}
