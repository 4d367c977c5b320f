//! `msrgate check`.

use std::io::Write;

use miette::Diagnostic as _;
use msrgate_filter::{Access, Range};
use msrgate_policy::{Compiled, Entry, EntryId, Mistakes, Said, one_line};
use serde::Serialize;

use crate::cli::{Format, PolicyArgs};
use crate::failure::{Answer, Failure};
use crate::load;
use crate::output::{self, SCHEMA};

#[derive(Serialize)]
struct Report {
    schema: u32,
    ok: bool,
    mistakes: Vec<Remark>,
    warnings: Vec<Remark>,
    packed: Option<Packed>,
}

/// Something to mend, or to know.
#[derive(Serialize)]
struct Remark {
    message: String,
    help: Option<String>,
    line: Option<usize>,
    column: Option<usize>,
}

#[derive(Serialize)]
struct Packed {
    name: Option<String>,
    default: &'static str,
    entries: usize,
    ranges: Vec<PackedRange>,
}

#[derive(Serialize)]
struct PackedRange {
    access: String,
    base: String,
    count: u32,
    allowed: u32,
}

pub(super) fn run(args: &PolicyArgs, out: &mut dyn Write) -> Result<Answer, Failure> {
    let compiled = load::compiled(&args.policy);
    match (args.format.format, compiled) {
        (Format::Text, compiled) => print(out, &compiled?)?,
        (Format::Json, Ok(compiled)) => output::json(out, &sound(&compiled))?,
        (Format::Json, Err(failure)) => {
            let mistakes = match &failure {
                Failure::Mistakes(mistakes) => mistakes_of(mistakes),
                Failure::Refused(message) => vec![Remark::whole(message.clone())],
                _ => return Err(failure),
            };
            output::json(
                out,
                &Report {
                    schema: SCHEMA,
                    ok: false,
                    mistakes,
                    warnings: Vec::new(),
                    packed: None,
                },
            )?;
            return Ok(Answer::No);
        }
    }
    Ok(Answer::Yes)
}

impl Remark {
    /// One about the whole policy.
    fn whole(message: String) -> Self {
        Self {
            message,
            help: None,
            line: None,
            column: None,
        }
    }
}

fn mistakes_of(mistakes: &Mistakes) -> Vec<Remark> {
    let remark = |mistake| {
        let place = mistakes.place(mistake);
        Remark {
            message: mistake.to_string(),
            help: mistake.help().map(|help| help.to_string()),
            line: place.map(|place| place.line),
            column: place.map(|place| place.column),
        }
    };
    mistakes.mistakes().iter().map(remark).collect()
}

fn sound(compiled: &Compiled) -> Report {
    let warning = |entry: &Entry| Remark {
        message: without_effect(entry),
        help: Some("delete it, or the entries within it".to_owned()),
        line: Some(entry.place().line),
        column: Some(entry.place().column),
    };
    let policy = compiled.policy();
    Report {
        schema: SCHEMA,
        ok: true,
        mistakes: Vec::new(),
        warnings: never_effective(compiled).into_iter().map(warning).collect(),
        packed: Some(Packed {
            name: policy.name().map(str::to_owned),
            default: policy.default_action().word(),
            entries: policy.entries().len(),
            ranges: compiled.filter().ranges().iter().map(packed).collect(),
        }),
    }
}

fn packed(range: &Range) -> PackedRange {
    PackedRange {
        access: range.accesses().to_string(),
        base: range.base().to_string(),
        count: range.bitmap().count(),
        allowed: range
            .bitmap()
            .words()
            .iter()
            .map(|word| word.count_ones())
            .sum(),
    }
}

/// Entries that decide no access, since smaller ones decide all of theirs.
fn never_effective(compiled: &Compiled) -> Vec<&Entry> {
    let table = compiled.table();
    let segments = Access::ALL
        .into_iter()
        .flat_map(|access| table.segments(access));
    let effective: std::collections::HashSet<EntryId> = segments
        .filter_map(|segment| match segment.said {
            Said::ByEntry(id) => Some(id),
            Said::ByDefault | Said::ByKvm => None,
        })
        .collect();
    let policy = compiled.policy();
    let ids = policy.ids().filter(|id| !effective.contains(id));
    ids.map(|id| policy.entry(id)).collect()
}

fn without_effect(entry: &Entry) -> String {
    format!(
        "`{}` decides nothing: other entries decide all of its MSRs",
        one_line(entry.key())
    )
}

fn print(out: &mut dyn Write, compiled: &Compiled) -> Result<(), Failure> {
    let policy = compiled.policy();
    let source = policy.source().name();
    let yellow = anstyle::AnsiColor::Yellow.on_default().bold();
    for entry in never_effective(compiled) {
        let line = entry.place().line;
        writeln!(
            out,
            "{yellow}warning{yellow:#}: {source}:{line}: {}",
            without_effect(entry)
        )?;
    }
    let green = anstyle::AnsiColor::Green.on_default().bold();
    let ranges = compiled.filter().ranges();
    writeln!(out, "{source}: {green}no mistakes{green:#}")?;
    writeln!(
        out,
        "{} entries, default {}, packed into {} of 16 ranges; equal to the policy for all 2^32 MSRs, reads and writes",
        policy.entries().len(),
        policy.default_action(),
        ranges.len(),
    )?;
    for (number, range) in ranges.iter().enumerate() {
        let packed = packed(range);
        writeln!(
            out,
            "  range {number:<2}  {:<2}  from {:<10}  {:>5} MSRs, {} allowed",
            packed.access, packed.base, packed.count, packed.allowed
        )?;
    }
    Ok(())
}
