//! The warnings of `check`, as text and as JSON.

use std::collections::BTreeSet;
use std::io::Write;

use msrgate_policy::lint::{Code, Warning};
use msrgate_policy::{Entry, Policy, one_line, shown_name};
use serde::Serialize;

use super::SHOWN;
use crate::cli::{Detail, Severity};
use crate::failure::Failure;
use crate::remark::Remark;

/// The number of details that a line about one entry has, unless the user asks for all.
const DETAILS: usize = 4;

/// A warning, with its kind and its text.
#[derive(Serialize)]
pub(super) struct WarningRow {
    code: &'static str,
    /// `warning`; with `--deny-warnings`, `error`.
    severity: &'static str,
    /// The word by which a policy's `accept` accepts the warning.
    accept: &'static str,
    #[serde(flatten)]
    remark: Remark,
    details: Vec<String>,
}

impl WarningRow {
    pub(super) fn of(policy: &Policy, warning: &Warning<'_>, severity: Severity) -> Self {
        let file = |entry: &Entry| policy.text(entry.source()).name().to_owned();
        Self {
            code: warning.code.word(),
            severity: word(severity),
            accept: warning.accept,
            remark: Remark {
                message: warning.message.clone(),
                help: Some(warning.help.clone()),
                file: warning.entry.map(file),
                line: warning.entry.map(|entry| entry.place().line),
                column: warning.entry.map(|entry| entry.place().column),
                others: Vec::new(),
            },
            details: warning.details.clone(),
        }
    }
}

const fn word(severity: Severity) -> &'static str {
    match severity {
        Severity::Warning => "warning",
        Severity::Error => "error",
    }
}

/// Returns the place of a warning's entry, such as `policy.toml:7`, or the policy's name if the warning is
/// about the whole policy.
fn place(policy: &Policy, entry: Option<&Entry>) -> String {
    match entry {
        None => shown_name(policy.source().name()),
        Some(entry) => {
            let file = shown_name(policy.text(entry.source()).name());
            format!("{file}:{}", entry.place().line)
        }
    }
}

/// Prints the warnings of one kind: all below one heading if the kind has a heading, else one by one.
pub(super) fn print(
    out: &mut dyn Write,
    policy: &Policy,
    warnings: &[Warning<'_>],
    (detail, severity): (Detail, Severity),
) -> Result<(), Failure> {
    let Some(first) = warnings.first() else {
        return Ok(());
    };
    let code = first.code.word();
    let colour = match severity {
        Severity::Warning => anstyle::AnsiColor::Yellow,
        Severity::Error => anstyle::AnsiColor::Red,
    };
    let (style, word) = (colour.on_default().bold(), word(severity));
    let title = |entry, message: &str| {
        let place = place(policy, entry);
        format!("{style}{word}{style:#}[{code}]: {place}: {message}")
    };
    let shown = match detail {
        // A punctured entry is one that an included entry within its range loosens. The punctured entries of
        // the policy's own text come first, and all of them are shown.
        Detail::Brief => SHOWN.max(own_punctured(policy, warnings)),
        Detail::Full => usize::MAX,
    };
    if let Some(heading) = first.code.heading() {
        writeln!(out, "{}", title(None, heading))?;
        for warning in warnings.iter().take(shown) {
            writeln!(out, "  {}", line(policy, warning, detail))?;
        }
        more(out, code, warnings.len().saturating_sub(shown))?;
        writeln!(out, "  help: {}", first.help)?;
    } else {
        for warning in warnings.iter().take(shown) {
            writeln!(out, "{}", title(warning.entry, &warning.message))?;
            print_bits(out, warning, detail)?;
            writeln!(out, "  help: {}", warning.help)?;
        }
        more(out, code, warnings.len().saturating_sub(shown))?;
    }
    // The help of a gap says how to accept the gap.
    if first.code.is_accepted_by_word() {
        writeln!(out, "  accept: write `accept = [\"{code}\"]`")?;
    }
    Ok(())
}

/// Returns the line of a warning below the heading of its kind: the entry, and its details.
fn line(policy: &Policy, warning: &Warning<'_>, detail: Detail) -> String {
    let key = warning.entry.map_or("default".to_owned(), |entry| {
        let place = place(policy, warning.entry);
        format!("{place} {}", one_line(entry.key()))
    });
    let shown = match detail {
        Detail::Brief => DETAILS,
        Detail::Full => usize::MAX,
    };
    let details: Vec<_> = warning.details.iter().take(shown).cloned().collect();
    match (
        details.join(", "),
        warning.details.len().saturating_sub(shown),
    ) {
        (_, _) if details.is_empty() => key,
        (details, 0) => format!("{key}: {details}"),
        (details, more) => format!("{key}: {details} and {more} more"),
    }
}

/// Prints the bits of CPUID that offer refused registers; if `detail` is brief, their number.
fn print_bits(out: &mut dyn Write, warning: &Warning<'_>, detail: Detail) -> Result<(), Failure> {
    if warning.code != Code::CpuidRefused {
        return Ok(());
    }
    match detail {
        Detail::Brief => writeln!(out, "  --verbose lists them by their bits of CPUID")?,
        Detail::Full => {
            for line in &warning.details {
                writeln!(out, "  {line}")?;
            }
        }
    }
    Ok(())
}

/// Returns the number of punctured entries in the policy's own text. A punctured entry is one that an
/// included entry within its range loosens.
fn own_punctured(policy: &Policy, warnings: &[Warning<'_>]) -> usize {
    let punctured = warnings.iter().filter(|one| one.code == Code::Punctured);
    let entries = punctured.filter_map(|warning| warning.entry);
    let own = entries.filter(|entry| std::ptr::eq(policy.text(entry.source()), policy.source()));
    let places: BTreeSet<_> = own
        .map(|entry| (entry.place().line, entry.place().column))
        .collect();
    places.len()
}

/// Prints the number of warnings that are not shown.
fn more(out: &mut dyn Write, code: &str, count: usize) -> Result<(), Failure> {
    if count > 0 {
        writeln!(
            out,
            "  and {count} more {code} warnings; --verbose lists all"
        )?;
    }
    Ok(())
}
