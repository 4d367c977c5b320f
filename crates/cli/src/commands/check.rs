//! `msrgate check`: reports what is wrong with a policy, what it enforces, and how it packs into a filter.

mod enforced;
mod host;
mod picture;
mod warnings;
mod within;

use std::io::Write;

use msrgate_policy::lint;
use msrgate_policy::{Compiled, shown_name};
use serde::Serialize;

pub(super) use enforced::{BypassRow, accepted};

use crate::cli::{CheckArgs, Format, Severity};
use crate::failure::{Answer, Failure};
use crate::load;
use crate::output::{self, SCHEMA};
use crate::processor;
use crate::remark::Remark;
use crate::terminal;
use enforced::Counted;
use host::{Findings, Host, HostRow};
use picture::{Layout, PackedVariant, Shown};
use warnings::WarningRow;
use within::{Within, WithinReport};

/// The number of warnings of one kind that are shown, unless the user asks for all.
const SHOWN: usize = 10;

#[derive(Serialize)]
struct Report {
    schema: u32,
    ok: bool,
    /// Always empty: for a policy with mistakes the command prints only the mistakes.
    mistakes: [Remark; 0],
    warnings: Vec<WarningRow>,
    /// The processor that the user asked for; null if the report is about all processors.
    cpu: Option<String>,
    /// The host whose KVM the warnings are about.
    host: HostRow,
    enforcement: Counted,
    packed: Packed,
    /// The comparison with the policy of `--within`; absent without that option.
    #[serde(skip_serializing_if = "Option::is_none")]
    within: Option<WithinReport>,
}

#[derive(Serialize)]
struct Packed {
    name: Option<String>,
    default: &'static str,
    entries: usize,
    /// The digest of the program, which is equal for policies that do the same.
    digest: String,
    variants: Vec<PackedVariant>,
}

pub(super) fn run(args: &CheckArgs, out: &mut dyn Write) -> Result<Answer, Failure> {
    let compiled = load::compiled(&args.policy)?;
    let within = match &args.within {
        Some(org) => Some(Within::of(&args.policy, &compiled, org)?),
        None => None,
    };
    let asked = args.cpu.asked([compiled.program()])?;
    let cpu = asked.as_ref();
    if let Some(cpu) = cpu {
        processor::note(&format!(
            "the filter is shown for {cpu}; the warnings about the policy itself are for every processor"
        ));
    }
    let has_whens = !compiled.policy().whens().is_empty();
    let shown = |variant, like| Shown {
        variant,
        cpu: has_whens.then_some(like),
    };
    let variants = if let Some(named) = cpu {
        vec![shown(compiled.on(cpu), named)]
    } else {
        let all = compiled.variants().iter();
        all.map(|one| shown(one, one.example())).collect()
    };
    let host = Host::ask(args.host)?;
    let mut found = host.findings(&compiled, cpu);
    let mut all = lint::of_policy(&compiled);
    all.append(&mut found.warnings);
    found.warnings = all;
    let is_denied = args.severity() == Severity::Error && !found.warnings.is_empty();
    let holds = within.as_ref().is_none_or(Within::holds);
    let answer = if holds && !is_denied {
        Answer::Yes
    } else {
        Answer::No
    };
    match args.format.format {
        Format::Text => print(out, &compiled, &found, within.as_ref(), &variants, args)?,
        Format::Json => {
            let rows = found
                .warnings
                .iter()
                .map(|one| WarningRow::of(compiled.policy(), one, args.severity()));
            let report = Report {
                schema: SCHEMA,
                ok: answer == Answer::Yes,
                mistakes: [],
                warnings: rows.collect(),
                cpu: cpu.map(ToString::to_string),
                host: host.row(found.not_made),
                enforcement: enforced::report(&compiled),
                packed: Packed::of(&compiled, &variants),
                within: within.as_ref().map(Within::report),
            };
            output::json(out, &report)?;
        }
    }
    Ok(answer)
}

impl Packed {
    fn of(compiled: &Compiled, variants: &[Shown<'_>]) -> Self {
        let policy = compiled.policy();
        Self {
            name: policy.name().map(str::to_owned),
            default: policy.default_action().word(),
            entries: policy.entries().len(),
            digest: compiled.program().digest().to_string(),
            variants: variants.iter().map(PackedVariant::of).collect(),
        }
    }
}

fn print(
    out: &mut dyn Write,
    compiled: &Compiled,
    found: &Findings<'_>,
    within: Option<&Within>,
    variants: &[Shown<'_>],
    args: &CheckArgs,
) -> Result<(), Failure> {
    let policy = compiled.policy();
    let (detail, severity) = (args.detail(), args.severity());
    for warnings in found.warnings.chunk_by(|one, next| one.code == next.code) {
        warnings::print(out, policy, warnings, (detail, severity))?;
    }
    // If the command could not look for several kinds of warnings for the same reason, one line names them
    // all.
    for missing in found.not_made.chunk_by(|one, next| one.why == next.why) {
        let codes: Vec<_> = missing.iter().map(|one| one.code).collect();
        let why = missing.first().map_or("", |one| &one.why);
        let codes = codes.join(" and ");
        writeln!(out, "note: msrgate did not make the checks {codes}: {why}")?;
    }
    let green = anstyle::AnsiColor::Green.on_default().bold();
    let source = shown_name(policy.source().name());
    match (severity, found.warnings.len()) {
        (Severity::Warning, _) | (_, 0) => writeln!(out, "{source}: {green}no mistakes{green:#}")?,
        (Severity::Error, count) => writeln!(
            out,
            "{source}: no mistakes, but {}, which --deny-warnings makes {}",
            output::count(count, "warning", "warnings"),
            if count == 1 { "an error" } else { "errors" },
        )?,
    }
    writeln!(
        out,
        "{}, default {}; msrgate has checked each filter against the policy for reads and writes of all 2^32 MSRs",
        output::count(policy.entries().len(), "entry", "entries"),
        policy.default_action().word(),
    )?;
    within.iter().try_for_each(|within| within.print(out))?;
    enforced::print(out, compiled, detail)?;
    for variant in variants {
        let layout = Layout::of(terminal::of_results());
        picture::draw(out, variant, (detail, layout))?;
    }
    writeln!(out, "digest {}", compiled.program().digest().short())?;
    Ok(())
}
