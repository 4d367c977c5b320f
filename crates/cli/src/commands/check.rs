//! `msrgate check`: reports what is wrong with a policy, what it enforces, and how it packs into a filter.

mod enforced;
mod host;
mod picture;
mod within;

use std::collections::BTreeSet;
use std::io::Write;

use msrgate_policy::lint::{self, Code, Warning};
use msrgate_policy::{Compiled, Cpu, Entry, one_line, shown_name};
use serde::Serialize;

pub(super) use enforced::{BypassRow, accepted};

use crate::cli::{CheckArgs, Detail, Format};
use crate::failure::{Answer, Failure};
use crate::load;
use crate::output::{self, SCHEMA};
use crate::processor;
use crate::remark::Remark;
use crate::terminal;
use enforced::Counted;
use host::{Findings, Host, HostRow};
use picture::{Layout, PackedVariant, Shown};
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

/// A warning, with its kind and its text.
#[derive(Serialize)]
struct WarningRow {
    code: &'static str,
    #[serde(flatten)]
    remark: Remark,
    details: Vec<String>,
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
    match args.format.format {
        Format::Text => print(
            out,
            &compiled,
            &found,
            within.as_ref(),
            &variants,
            args.detail(),
        )?,
        Format::Json => {
            let report = report(&compiled, &host, found, within.as_ref(), (cpu, &variants));
            output::json(out, &report)?;
        }
    }
    let holds = within.is_none_or(|within| within.holds());
    Ok(if holds { Answer::Yes } else { Answer::No })
}

fn report(
    compiled: &Compiled,
    host: &Host,
    found: Findings<'_>,
    within: Option<&Within>,
    (cpu, variants): (Option<&Cpu>, &[Shown<'_>]),
) -> Report {
    let policy = compiled.policy();
    let file = |entry: &Entry| policy.text(entry.source()).name().to_owned();
    let row = |warning: Warning<'_>| WarningRow {
        code: warning.code.word(),
        remark: Remark {
            message: warning.message,
            help: Some(warning.help),
            file: warning.entry.map(file),
            line: warning.entry.map(|entry| entry.place().line),
            column: warning.entry.map(|entry| entry.place().column),
            others: Vec::new(),
        },
        details: warning.details,
    };
    Report {
        schema: SCHEMA,
        ok: within.is_none_or(Within::holds),
        mistakes: [],
        warnings: found.warnings.into_iter().map(row).collect(),
        cpu: cpu.map(ToString::to_string),
        host: host.row(found.not_made),
        enforcement: enforced::report(compiled),
        packed: Packed {
            name: policy.name().map(str::to_owned),
            default: policy.default_action().word(),
            entries: policy.entries().len(),
            digest: compiled.program().digest().to_string(),
            variants: variants.iter().map(PackedVariant::of).collect(),
        },
        within: within.map(Within::report),
    }
}

fn print(
    out: &mut dyn Write,
    compiled: &Compiled,
    found: &Findings<'_>,
    within: Option<&Within>,
    variants: &[Shown<'_>],
    detail: Detail,
) -> Result<(), Failure> {
    let policy = compiled.policy();
    for warnings in found.warnings.chunk_by(|one, next| one.code == next.code) {
        print_warnings(out, compiled, warnings, detail)?;
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
    writeln!(out, "{source}: {green}no mistakes{green:#}")?;
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

/// Returns the place of a warning's entry, such as `policy.toml:7`, or the policy's name if the warning is
/// about the whole policy.
fn place(compiled: &Compiled, entry: Option<&Entry>) -> String {
    let policy = compiled.policy();
    match entry {
        None => shown_name(policy.source().name()),
        Some(entry) => {
            let file = shown_name(policy.text(entry.source()).name());
            format!("{file}:{}", entry.place().line)
        }
    }
}

/// Prints the warnings of one kind: all below one heading if the kind has a heading, else one by one.
fn print_warnings(
    out: &mut dyn Write,
    compiled: &Compiled,
    warnings: &[Warning<'_>],
    detail: Detail,
) -> Result<(), Failure> {
    let yellow = anstyle::AnsiColor::Yellow.on_default().bold();
    let Some(first) = warnings.first() else {
        return Ok(());
    };
    let code = first.code.word();
    let shown = match detail {
        // A punctured entry is one that an included entry within its range loosens. The punctured entries of
        // the policy's own text come first, and all of them are shown.
        Detail::Brief => SHOWN.max(own_punctured(compiled, warnings)),
        Detail::Full => usize::MAX,
    };
    let Some(heading) = first.code.heading() else {
        for warning in warnings.iter().take(shown) {
            let (place, message) = (place(compiled, warning.entry), &warning.message);
            writeln!(out, "{yellow}warning{yellow:#}[{code}]: {place}: {message}")?;
            writeln!(out, "  help: {}", warning.help)?;
        }
        return more(out, code, warnings.len().saturating_sub(shown));
    };
    let source = place(compiled, None);
    writeln!(
        out,
        "{yellow}warning{yellow:#}[{code}]: {source}: {heading}"
    )?;
    let lines: Vec<_> = warnings
        .iter()
        .flat_map(|warning| {
            let key = warning.entry.map_or("default".to_owned(), |entry| {
                format!(
                    "{} {}",
                    place(compiled, warning.entry),
                    one_line(entry.key())
                )
            });
            let details = warning.details.iter();
            details.map(move |line| format!("{key}: {line}"))
        })
        .collect();
    for line in lines.iter().take(shown) {
        writeln!(out, "  {line}")?;
    }
    more(out, code, lines.len().saturating_sub(shown))?;
    writeln!(out, "  help: {}", first.help)?;
    Ok(())
}

/// Returns the number of punctured entries in the policy's own text. A punctured entry is one that an
/// included entry within its range loosens.
fn own_punctured(compiled: &Compiled, warnings: &[Warning<'_>]) -> usize {
    let policy = compiled.policy();
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
