//! `msrgate explain`.

use std::io::Write;

use msrgate_filter::{Access, MsrIndex, Verdict};
use msrgate_policy::registers;
use msrgate_policy::{Entry, Explanation, MsrSet, Policy, Said, Variant, explain, one_line};
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
    /// The action with its values, as a policy writes it.
    does: String,
    /// Where the policy says so, counted from 1; null for the default, and for x2APIC registers.
    line: Option<usize>,
    /// The text of that line: the policy itself, or what it includes.
    file: Option<&'c str>,
    entry: Option<&'c str>,
    why: Option<&'c str>,
    verdict: &'static str,
    /// The range of the filter that decides, counted from 0; null for the default.
    range: Option<usize>,
    /// How far the filter reaches this access: `enforced`, `partly`, `not`.
    enforced: String,
}

pub(super) fn run(args: &ExplainArgs, out: &mut dyn Write) -> Result<Answer, Failure> {
    let asked: u64 = args.msrs.iter().map(MsrSet::count).sum();
    if asked > MOST {
        return Err(Failure::Usage(format!(
            "{asked} MSRs are more than the {MOST} that are explained at once; name a smaller range"
        )));
    }
    let compiled = load::compiled(&args.policy)?;
    let (policy, variant) = (compiled.policy(), compiled.on(args.cpu.cpu.as_ref()));
    let indices = args.msrs.iter().flat_map(indices);
    match args.format.format {
        Format::Json => {
            let rows: Vec<_> = indices
                .flat_map(|index| Access::ALL.map(|access| explain(policy, variant, index, access)))
                .map(|explanation| row(policy, &explanation))
                .collect();
            output::json(out, &rows)?;
        }
        Format::Text => {
            for index in indices {
                print(out, policy, variant, index)?;
            }
        }
    }
    Ok(Answer::Yes)
}

fn indices(msrs: &MsrSet) -> impl Iterator<Item = MsrIndex> {
    let ranges = msrs.ranges().iter();
    ranges
        .flat_map(|range| range.first().get()..=range.last().get())
        .map(MsrIndex::new)
}

fn row<'c>(policy: &'c Policy, explanation: &Explanation<'c>) -> Row<'c> {
    Row {
        index: explanation.index.to_string(),
        name: output::name(explanation.index),
        access: explanation.access.to_string(),
        action: explanation.action.word(),
        does: explanation.action.to_string(),
        line: explanation.entry.map(|entry| entry.place().line),
        file: explanation
            .entry
            .map(|entry| policy.text(entry.source()).name()),
        entry: explanation.entry.map(Entry::key),
        why: explanation.entry.and_then(Entry::why),
        verdict: match explanation.decision.verdict {
            Verdict::Allow => "allow",
            Verdict::Deny => "deny",
        },
        range: explanation.range(),
        enforced: registers::reach(explanation.index, explanation.access).to_string(),
    }
}

fn print(
    out: &mut dyn Write,
    policy: &Policy,
    variant: &Variant,
    index: MsrIndex,
) -> Result<(), Failure> {
    let bold = anstyle::Style::new().bold();
    writeln!(out, "{bold}{}{bold:#}", output::titled(index))?;
    for access in Access::ALL {
        let explanation = explain(policy, variant, index, access);
        let word = explanation.action.word();
        writeln!(
            out,
            "  {access:<5}  {word:<8}  {}",
            source_of(policy, &explanation)
        )?;
        if let Some(why) = explanation.entry.and_then(Entry::why) {
            writeln!(out, "                   because {}", one_line(why))?;
        }
        writeln!(
            out,
            "                   {}",
            mechanism(variant, &explanation)
        )?;
        if explanation.said != Said::ByKvm {
            for gap in registers::reach(index, access).gaps() {
                writeln!(out, "                   not always asked: {}", gap.why)?;
            }
        }
    }
    Ok(())
}

/// Which line says so.
fn source_of(policy: &Policy, explanation: &Explanation<'_>) -> String {
    match (explanation.said, explanation.entry) {
        (Said::ByKvm, _) => "an x2APIC register, which KVM never filters (S3.1)".to_owned(),
        (_, Some(entry)) => {
            let file = one_line(policy.text(entry.source()).name());
            let (line, key) = (entry.place().line, one_line(entry.key()));
            format!("{file}:{line} says {} of {key}", explanation.action)
        }
        (_, None) => format!(
            "no entry of {} decides it, so `default` holds",
            policy.source().name()
        ),
    }
}

/// What happens, and how the kernel comes to it.
fn mechanism(variant: &Variant, explanation: &Explanation<'_>) -> String {
    let ranges = variant.filter().ranges();
    let number = explanation.range();
    let effect = match explanation.decision.verdict {
        Verdict::Allow => "KVM handles it",
        Verdict::Deny if explanation.action.needs_answer() => "the gate answers it",
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
