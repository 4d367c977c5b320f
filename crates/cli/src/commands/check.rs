//! `msrgate check`.

mod warnings;
mod within;

use std::io::Write;

use msrgate_filter::Range;
use msrgate_policy::{Compiled, Policy, Program, Variant};
use serde::Serialize;

use crate::cli::{CheckArgs, Format};
use crate::failure::{Answer, Failure};
use crate::load;
use crate::output::{self, SCHEMA};
use crate::remark::Remark;
use within::{Within, WithinReport};

#[derive(Serialize)]
struct Report {
    schema: u32,
    ok: bool,
    /// None: a policy with mistakes has no answer but them.
    mistakes: [Remark; 0],
    warnings: Vec<Remark>,
    packed: Packed,
    /// Whether it is no looser than `--within`; absent if that was not asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    within: Option<WithinReport>,
}

#[derive(Serialize)]
struct Packed {
    name: Option<String>,
    default: &'static str,
    entries: usize,
    /// Equal for policies that do the same.
    digest: String,
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

pub(super) fn run(args: &CheckArgs, out: &mut dyn Write) -> Result<Answer, Failure> {
    let compiled = load::compiled(&args.policy)?;
    let within = match &args.within {
        Some(org) => Some(Within::of(&args.policy, &compiled, org)?),
        None => None,
    };
    match args.format.format {
        Format::Text => {
            print(out, &compiled)?;
            within.iter().try_for_each(|within| within.print(out))?;
        }
        Format::Json => output::json(out, &sound(&compiled, within.as_ref()))?,
    }
    let holds = within.is_none_or(|within| within.holds());
    Ok(if holds { Answer::Yes } else { Answer::No })
}

fn sound(compiled: &Compiled, within: Option<&Within>) -> Report {
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
        ok: within.is_none_or(Within::holds),
        mistakes: [],
        warnings: warnings.collect(),
        packed: Packed {
            name: policy.name().map(str::to_owned),
            default: policy.default_action().word(),
            entries: policy.entries().len(),
            digest: Program::of(compiled).digest().to_string(),
            variants: compiled
                .variants()
                .iter()
                .map(|one| packed_variant(policy, one))
                .collect(),
        },
        within: within.map(Within::report),
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
        "{}, default {}; each filter is equal to the policy for all 2^32 MSRs, reads and writes",
        output::count(policy.entries().len(), "entry", "entries"),
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
                "  range {number:<2}  {:<2}  from {:<10}  {:>5} {}, {} allowed",
                range.access,
                range.base,
                range.count,
                if range.count == 1 { "MSR" } else { "MSRs" },
                range.allowed
            )?;
        }
    }
    writeln!(out, "digest {}", Program::of(compiled).digest().short())?;
    Ok(())
}
