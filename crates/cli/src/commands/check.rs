//! `msrgate check`.

mod warnings;

use std::io::Write;

use msrgate_filter::Range;
use msrgate_policy::{Compiled, Policy, Variant};
use serde::Serialize;

use crate::cli::{Format, PolicyArgs};
use crate::failure::{Answer, Failure};
use crate::load;
use crate::output::{self, SCHEMA};
use crate::remark::Remark;

#[derive(Serialize)]
struct Report {
    schema: u32,
    ok: bool,
    /// None: a policy with mistakes has no answer but them.
    mistakes: [Remark; 0],
    warnings: Vec<Remark>,
    packed: Packed,
}

#[derive(Serialize)]
struct Packed {
    name: Option<String>,
    default: &'static str,
    entries: usize,
    variants: Vec<PackedVariant>,
}

/// One filter.
#[derive(Serialize)]
struct PackedVariant {
    /// A processor on which it holds; null for a policy without `[[when]]`.
    cpu: Option<String>,
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
    let compiled = load::compiled(&args.policy)?;
    match args.format.format {
        Format::Text => print(out, &compiled)?,
        Format::Json => output::json(out, &sound(&compiled))?,
    }
    Ok(Answer::Yes)
}

fn sound(compiled: &Compiled) -> Report {
    let policy = compiled.policy();
    let warnings = warnings::of(compiled).into_iter().map(|warning| Remark {
        message: warning.message,
        help: Some(warning.help),
        file: warning
            .entry
            .map(|entry| policy.text(entry.source()).name().to_owned()),
        line: warning.entry.map(|entry| entry.place().line),
        column: warning.entry.map(|entry| entry.place().column),
    });
    Report {
        schema: SCHEMA,
        ok: true,
        mistakes: [],
        warnings: warnings.collect(),
        packed: Packed {
            name: policy.name().map(str::to_owned),
            default: policy.default_action().word(),
            entries: policy.entries().len(),
            variants: compiled
                .variants()
                .iter()
                .map(|one| packed_variant(policy, one))
                .collect(),
        },
    }
}

fn packed_variant(policy: &Policy, variant: &Variant) -> PackedVariant {
    PackedVariant {
        cpu: (!policy.whens().is_empty()).then(|| variant.example().to_string()),
        ranges: variant.filter().ranges().iter().map(packed).collect(),
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

fn print(out: &mut dyn Write, compiled: &Compiled) -> Result<(), Failure> {
    let policy = compiled.policy();
    let source = policy.source().name();
    let yellow = anstyle::AnsiColor::Yellow.on_default().bold();
    for warning in warnings::of(compiled) {
        let place = warning.entry.map_or_else(
            || source.to_owned(),
            |entry| {
                format!(
                    "{}:{}",
                    policy.text(entry.source()).name(),
                    entry.place().line
                )
            },
        );
        writeln!(
            out,
            "{yellow}warning{yellow:#}: {place}: {}",
            warning.message
        )?;
        writeln!(out, "  help: {}", warning.help)?;
    }
    let green = anstyle::AnsiColor::Green.on_default().bold();
    writeln!(out, "{source}: {green}no mistakes{green:#}")?;
    writeln!(
        out,
        "{} entries, default {}; each filter is equal to the policy for all 2^32 MSRs, reads and writes",
        policy.entries().len(),
        policy.default_action().word(),
    )?;
    for variant in compiled.variants() {
        let packed = packed_variant(policy, variant);
        match packed.cpu {
            Some(cpu) => writeln!(
                out,
                "on {cpu} and the like, {} of 16 ranges",
                packed.ranges.len()
            )?,
            None => writeln!(out, "{} of 16 ranges", packed.ranges.len())?,
        }
        for (number, range) in packed.ranges.iter().enumerate() {
            writeln!(
                out,
                "  range {number:<2}  {:<2}  from {:<10}  {:>5} MSRs, {} allowed",
                range.access, range.base, range.count, range.allowed
            )?;
        }
    }
    Ok(())
}
