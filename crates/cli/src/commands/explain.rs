//! `msrgate explain`.

use std::io::Write;

use msrgate_filter::{Access, MsrIndex, Verdict};
use msrgate_policy::{Compiled, Entry, Explanation, MsrRange, Said, explain, one_line};
use serde::Serialize;

use crate::cli::{ExplainArgs, Format};
use crate::failure::{Answer, Failure};
use crate::load;
use crate::output;

/// More MSRs than this at once are a mistake, not a question.
const MOST: u64 = 0x1_0000;

/// One MSR in one direction, for programs.
#[derive(Serialize)]
struct Row<'c> {
    index: String,
    name: Option<&'static str>,
    access: String,
    action: &'static str,
    /// Where the policy says so, counted from 1; null for the default, and for x2APIC registers.
    line: Option<usize>,
    entry: Option<&'c str>,
    why: Option<&'c str>,
    verdict: &'static str,
    /// The range of the filter that decides, counted from 0; null for the default.
    range: Option<usize>,
}

pub(super) fn run(args: &ExplainArgs, out: &mut dyn Write) -> Result<Answer, Failure> {
    let asked: u64 = args.msrs.iter().map(|range| range.count()).sum();
    if asked > MOST {
        return Err(Failure::Usage(format!(
            "{asked} MSRs are more than the {MOST} that are explained at once; name a smaller range"
        )));
    }
    let compiled = load::compiled(&args.policy)?;
    let indices = args.msrs.iter().copied().flat_map(indices);
    match args.format.format {
        Format::Json => {
            let rows: Vec<_> = indices
                .flat_map(|index| Access::ALL.map(|access| explain(&compiled, index, access)))
                .map(|explanation| row(&explanation))
                .collect();
            output::json(out, &rows)?;
        }
        Format::Text => {
            for index in indices {
                print(out, &compiled, index)?;
            }
        }
    }
    Ok(Answer::Yes)
}

fn indices(range: MsrRange) -> impl Iterator<Item = MsrIndex> {
    (range.first().get()..=range.last().get()).map(MsrIndex::new)
}

fn row<'c>(explanation: &Explanation<'c>) -> Row<'c> {
    Row {
        index: explanation.index.to_string(),
        name: output::name(explanation.index),
        access: explanation.access.to_string(),
        action: explanation.action.word(),
        line: explanation.entry.map(|entry| entry.place().line),
        entry: explanation.entry.map(Entry::key),
        why: explanation.entry.and_then(Entry::why),
        verdict: match explanation.decision.verdict {
            Verdict::Allow => "allow",
            Verdict::Deny => "deny",
        },
        range: explanation.range(),
    }
}

fn print(out: &mut dyn Write, compiled: &Compiled, index: MsrIndex) -> Result<(), Failure> {
    let bold = anstyle::Style::new().bold();
    writeln!(out, "{bold}{}{bold:#}", output::titled(index))?;
    for access in Access::ALL {
        let explanation = explain(compiled, index, access);
        let action = explanation.action;
        writeln!(
            out,
            "  {access:<5}  {:<5}  {}",
            action.word(),
            source_of(compiled, &explanation)
        )?;
        if let Some(why) = explanation.entry.and_then(Entry::why) {
            writeln!(out, "                because {}", one_line(why))?;
        }
        writeln!(out, "                {}", mechanism(compiled, &explanation))?;
    }
    Ok(())
}

/// Which line says so.
fn source_of(compiled: &Compiled, explanation: &Explanation<'_>) -> String {
    let source = compiled.policy().source().name();
    match (explanation.said, explanation.entry) {
        (Said::ByKvm, _) => "an x2APIC register, which KVM never filters (S3.1)".to_owned(),
        (_, Some(entry)) => format!(
            "{source}:{} says so of {}",
            entry.place().line,
            one_line(entry.key())
        ),
        (_, None) => format!("{source} names it nowhere, so `default` holds"),
    }
}

/// How the kernel comes to the same.
fn mechanism(compiled: &Compiled, explanation: &Explanation<'_>) -> String {
    let ranges = compiled.filter().ranges();
    let number = explanation.range();
    let effect = match explanation.decision.verdict {
        Verdict::Allow => "KVM handles it",
        Verdict::Deny => "the guest gets #GP",
    };
    match number.and_then(|number| Some((number, ranges.get(number)?))) {
        Some((number, range)) => format!(
            "{effect}: bit {} of range {number} ({}, from {})",
            explanation.index.get() - range.base().get(),
            range.accesses(),
            range.base(),
        ),
        None if explanation.said == Said::ByKvm => effect.to_owned(),
        None => format!("{effect}: no range of the filter speaks of it"),
    }
}
