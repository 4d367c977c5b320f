//! `msrgate check`.

mod warnings;
mod within;

use std::io::Write;

use msrgate_filter::Range;
use msrgate_policy::{Compiled, Mistake, Mistakes, Policy, Program, Variant};
use serde::Serialize;

use crate::cli::{CheckArgs, Format};
use crate::failure::{Answer, Failure};
use crate::load;
use crate::output::{self, SCHEMA};
use within::{Within, WithinReport};

#[derive(Serialize)]
struct Report {
    schema: u32,
    ok: bool,
    mistakes: Vec<Remark>,
    warnings: Vec<Remark>,
    packed: Option<Packed>,
    /// Whether it is no looser than `--within`; absent if that was not asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    within: Option<WithinReport>,
}

/// Something to mend, or to know.
#[derive(Serialize)]
struct Remark {
    message: String,
    help: Option<String>,
    /// The text: the policy itself, or what it includes.
    file: Option<String>,
    line: Option<usize>,
    column: Option<usize>,
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
    let compiled = load::compiled(&args.policy);
    let within = |compiled: &Compiled| match &args.within {
        Some(org) => Within::of(&args.policy, compiled, org).map(Some),
        None => Ok(None),
    };
    let failure = match (args.format.format, compiled) {
        (Format::Text, Err(failure)) => return Err(failure),
        (Format::Json, Err(failure)) => failure,
        (format, Ok(compiled)) => {
            let within = within(&compiled)?;
            match format {
                Format::Text => {
                    print(out, &compiled)?;
                    within.iter().try_for_each(|within| within.print(out))?;
                }
                Format::Json => {
                    output::json(out, &sound(&compiled, within.as_ref()))?;
                }
            }
            let holds = within.is_none_or(|within| within.holds());
            return Ok(if holds { Answer::Yes } else { Answer::No });
        }
    };
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
            within: None,
        },
    )?;
    Ok(Answer::No)
}

impl Remark {
    /// One about the whole policy.
    fn whole(message: String) -> Self {
        Self {
            message,
            help: None,
            file: None,
            line: None,
            column: None,
        }
    }
}

fn mistakes_of(mistakes: &Mistakes) -> Vec<Remark> {
    let remark = |mistake: &Mistake| {
        let (source, place) = mistakes.place(mistake).unzip();
        Remark {
            message: mistake.wrong().to_string(),
            help: mistake.wrong().help(),
            file: source.map(|source| source.name().to_owned()),
            line: place.map(|place| place.line),
            column: place.map(|place| place.column),
        }
    };
    mistakes.mistakes().iter().map(remark).collect()
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
        mistakes: Vec::new(),
        warnings: warnings.collect(),
        packed: Some(Packed {
            name: policy.name().map(str::to_owned),
            default: policy.default_action().word(),
            entries: policy.entries().len(),
            digest: Program::of(compiled).digest().to_string(),
            variants: compiled
                .variants()
                .iter()
                .map(|one| packed_variant(policy, one))
                .collect(),
        }),
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
    writeln!(out, "digest {}", Program::of(compiled).digest().short())?;
    Ok(())
}
