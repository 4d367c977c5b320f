//! `msrgate explain`: says what a policy does with an MSR, and why.

use std::io::Write;

use msrgate_filter::{Access, ExitNumber, ExitReason, MsrIndex, ReasonMask, Revision, Verdict};
use msrgate_policy::registers::{self, GapKind};
use msrgate_policy::{
    Action, Cpu, DecidedBy, Entry, Explanation, Extent, Log, Mode, MsrSet, Policy, Reported,
    Variant, explain, one_line, shown_name,
};
use serde::Serialize;

use super::check::{BypassRow, accepted};
use crate::cli::{ExplainArgs, Format};
use crate::failure::{Answer, Failure};
use crate::load;
use crate::output::{self, SCHEMA};
use crate::processor::{self, Chosen};

/// The largest number of MSRs in one call. A request for more is probably a mistake.
const MOST: u64 = 0x1_0000;

/// The indent of the lines that follow the first line of an access.
const INDENT: &str = "                   ";

#[derive(Serialize)]
struct Report<'c> {
    schema: u32,
    /// Two rows for each MSR: its reads, then its writes.
    accesses: Vec<Row<'c>>,
}

/// The JSON row of the reads of one MSR, or of its writes.
#[derive(Serialize)]
struct Row<'c> {
    /// The processor that the row is about; null if the policy is the same for all processors.
    cpu: Option<String>,
    index: String,
    name: Option<&'static str>,
    access: String,
    action: &'static str,
    /// The action with its values, as a policy writes it.
    does: String,
    /// The line of the policy that decides, counted from 1; null for the default, and for x2APIC registers.
    line: Option<u32>,
    /// The file of the line that decides: the policy itself, or a file that it includes.
    file: Option<&'c str>,
    /// The chain of files through which the policy includes the file of the line that decides. The first
    /// file is the policy itself.
    included_by: Vec<&'c str>,
    entry: Option<&'c str>,
    /// True if the entry is in a `[[when]]`, a part of the policy for some processors only.
    when: bool,
    why: Option<&'c str>,
    verdict: &'static str,
    /// The number of the filter's range that decides, counted from 0; null if the filter's default
    /// decides.
    range: Option<usize>,
    /// The bit number of the MSR in the bitmap of the range that decides.
    bit: Option<u32>,
    /// The result for the guest, in words.
    guest: String,
    /// True if the result needs a gate in the VMM; without one the guest gets #GP.
    needs_gate: bool,
    /// True if a gate in the VMM gives the policy's answer for a register that KVM does not know; without a
    /// gate the guest gets #GP.
    needs_gate_if_unknown: bool,
    kernel: KernelRow,
    /// The kernel's report to user space about an allowed access if KVM does not know the register.
    kernel_if_unknown: Option<KernelRow>,
    /// The policy's mode: `enforce` or `audit`.
    mode: &'static str,
    /// The accesses that the policy logs: `none`, `denied`, `first` or `all`.
    log: &'static str,
    /// The accesses that are logged as events, in words.
    events: String,
    /// The accesses of a register that KVM does not know that are logged as events, in words; null if the
    /// kernel reports none of them to user space.
    events_if_unknown: Option<String>,
    /// The extent to which the decision is enforced: `enforced`, `partly` or `not`.
    enforced: String,
    /// The accesses that bypass the decision. Version 1 of the JSON calls them `holes`.
    #[serde(rename = "holes")]
    bypasses: Vec<BypassRow>,
    /// The uses of the register by other instructions, which no filter checks.
    uses: Vec<UseRow>,
}

/// The kernel's report to user space about an access.
#[derive(Serialize)]
struct KernelRow {
    /// The kind of the report: `nothing`; `gp`, a #GP in the guest; or `exit`, an exit to user space.
    reports: &'static str,
    /// The value of `kvm_run.exit_reason` after an exit.
    exit: Option<u32>,
    /// The reason of an exit: `filter` or `unknown`.
    reason: Option<String>,
    /// The bit of the reason in `kvm_run.msr.reason`.
    reason_bit: Option<u64>,
}

#[derive(Serialize)]
struct UseRow {
    name: &'static str,
    why: &'static str,
    /// True if the instruction writes the register. The policy covers only WRMSR.
    changes: bool,
}

/// A policy as it holds on one processor.
struct Explained<'c> {
    policy: &'c Policy,
    variant: &'c Variant,
    /// The processor that the explanation is about; `None` if the policy is the same for all
    /// processors.
    cpu: Option<&'c Cpu>,
    /// The mask of exit reasons that the VM needs.
    mask: ReasonMask,
}

pub(super) fn run(args: &ExplainArgs, out: &mut dyn Write) -> Result<Answer, Failure> {
    let asked: u64 = args.msrs.iter().map(MsrSet::count).sum();
    if asked > MOST {
        return Err(Failure::Usage(format!(
            "explain takes at most {MOST} MSRs at once, but the arguments name {asked}; name a smaller range"
        )));
    }
    let compiled = load::compiled(&args.policy)?;
    let Chosen { variant, cpu } = processor::choose(&compiled, &args.cpu)?;
    let explained = Explained {
        policy: compiled.policy(),
        variant,
        cpu: cpu.as_ref(),
        mask: variant.reasons(),
    };
    let indices = args.msrs.iter().flat_map(indices);
    match args.format.format {
        Format::Json => {
            let rows = indices
                .flat_map(|index| Access::ALL.map(|access| explained.of(index, access)))
                .map(|explanation| explained.row(&explanation));
            let report = Report {
                schema: SCHEMA,
                accesses: rows.collect(),
            };
            output::json(out, &report)?;
        }
        Format::Text => {
            for index in indices {
                explained.print(out, index)?;
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

impl<'c> Explained<'c> {
    fn of(&self, index: MsrIndex, access: Access) -> Explanation<'c> {
        explain(self.policy, self.variant, index, access)
    }

    fn row(&self, explanation: &Explanation<'c>) -> Row<'c> {
        let entry = explanation.entry;
        let (extent, bypasses) = explanation.enforced();
        let uses = registers::uses(explanation.index).map(|gap| UseRow {
            name: gap.name,
            why: gap.why,
            changes: gap.kind == GapKind::Change,
        });
        Row {
            cpu: self.cpu.map(ToString::to_string),
            index: explanation.index.to_string(),
            name: output::name(explanation.index),
            access: explanation.access.to_string(),
            action: explanation.action.word(),
            does: explanation.action.to_string(),
            line: entry.map(|entry| entry.place().line),
            file: entry.map(|entry| self.policy.text(entry.source()).name()),
            included_by: entry.map_or(Vec::new(), |entry| self.included_by(entry)),
            entry: entry.map(Entry::key),
            when: entry.is_some_and(|entry| entry.when().is_some()),
            why: entry.and_then(Entry::why),
            verdict: match explanation.decision.verdict {
                Verdict::Allow => "allow",
                Verdict::Deny => "deny",
            },
            range: explanation.range(),
            bit: self.bit(explanation),
            guest: explanation.guest(),
            needs_gate: explanation.needs_gate(),
            needs_gate_if_unknown: explanation.needs_gate_if_unknown(),
            kernel: kernel_row(explanation.reported(self.mask)),
            kernel_if_unknown: explanation.reported_unknown(self.mask).map(kernel_row),
            mode: match self.policy.settings().mode {
                Mode::Enforce => "enforce",
                Mode::Audit => "audit",
            },
            log: explanation.log.word(),
            events: explanation.events().to_string(),
            events_if_unknown: explanation
                .events_if_unknown(self.mask)
                .map(|events| events.to_string()),
            enforced: extent.to_string(),
            bypasses: bypasses
                .iter()
                .map(|bypass| BypassRow::of(self.policy, bypass))
                .collect(),
            uses: uses.collect(),
        }
    }

    fn included_by(&self, entry: &Entry) -> Vec<&'c str> {
        let texts = self.policy.includers(entry.source()).into_iter();
        texts.map(msrgate_policy::Source::name).collect()
    }

    /// Returns the position of the bit that decides, counted from the beginning of its range.
    fn bit(&self, explanation: &Explanation<'_>) -> Option<u32> {
        let range = self.variant.filter().ranges().get(explanation.range()?)?;
        Some(explanation.index.get() - range.base().get())
    }

    fn print(&self, out: &mut dyn Write, index: MsrIndex) -> Result<(), Failure> {
        let bold = anstyle::Style::new().bold();
        writeln!(out, "{bold}{}{bold:#}", registers::titled(index))?;
        for access in Access::ALL {
            self.print_access(out, &self.of(index, access))?;
        }
        let write = self.of(index, Access::Write).action;
        for gap in registers::uses(index) {
            let past = match gap.kind {
                GapKind::Change if write != Action::Allow => {
                    format!(", which `{}` does not prevent", write.word())
                }
                _ => String::new(),
            };
            writeln!(out, "  not filtered: {}{past}", gap.why)?;
        }
        Ok(())
    }

    fn print_access(
        &self,
        out: &mut dyn Write,
        explanation: &Explanation<'_>,
    ) -> Result<(), Failure> {
        let (access, word) = (explanation.access.to_string(), explanation.action.word());
        let source = self.source_of(explanation);
        writeln!(out, "  {access:<5}  {word:<8}  {source}")?;
        if let Some(why) = explanation.entry.and_then(Entry::why) {
            writeln!(out, "{INDENT}why: {}", one_line(why))?;
        }
        writeln!(out, "{INDENT}filter: {}", self.mechanism(explanation))?;
        let guest = one_line(&explanation.guest());
        let by = if explanation.needs_gate() {
            " (answered by a gate in the VMM; without one, #GP)"
        } else if explanation.needs_gate_if_unknown() {
            " (then answered by a gate in the VMM; without one, #GP)"
        } else {
            ""
        };
        writeln!(out, "{INDENT}guest: {guest}{by}")?;
        let kernel = explanation.reported(self.mask);
        match explanation.reported_unknown(self.mask) {
            Some(unknown @ Reported::Exit(..)) => writeln!(
                out,
                "{INDENT}kernel reports: {kernel}; {unknown} if KVM does not know the register"
            )?,
            _ => writeln!(out, "{INDENT}kernel reports: {kernel}")?,
        }
        let (log, events) = (explanation.log.word(), explanation.events());
        let unknown = self.if_unknown(explanation);
        writeln!(
            out,
            "{INDENT}events: {events} (log {log}){}{unknown}",
            seen(explanation)
        )?;
        self.print_extent(out, explanation)
    }

    /// Returns the remark about the events of a register that KVM does not know, if they are others.
    fn if_unknown(&self, explanation: &Explanation<'_>) -> String {
        let events = explanation.events_if_unknown(self.mask);
        match events.filter(|events| *events != explanation.events()) {
            Some(events) => {
                let log = explanation.unknown_log().word();
                format!("; {events} if KVM does not know the register (log {log})")
            }
            None => String::new(),
        }
    }

    fn print_extent(
        &self,
        out: &mut dyn Write,
        explanation: &Explanation<'_>,
    ) -> Result<(), Failure> {
        let (extent, bypasses) = explanation.enforced();
        let extent = match extent {
            Extent::Enforced => "enforced",
            Extent::Partly => "partly enforced",
            Extent::Not => "not enforced",
        };
        if bypasses.is_empty() {
            writeln!(out, "{INDENT}{extent}")?;
        }
        for bypass in &bypasses {
            let accepted = accepted(self.policy, bypass);
            writeln!(out, "{INDENT}{extent}: {}{accepted}", bypass.cause.why())?;
        }
        Ok(())
    }

    /// Returns the line that decides, and the files that include it.
    fn source_of(&self, explanation: &Explanation<'_>) -> String {
        match (explanation.by, explanation.entry) {
            (DecidedBy::Kvm, _) => "KVM never filters x2APIC registers (S3.1)".to_owned(),
            (_, Some(entry)) => {
                let file = shown_name(self.policy.text(entry.source()).name());
                let (line, key) = (entry.place().line, one_line(entry.key()));
                let when = match (entry.when(), self.cpu) {
                    (Some(_), Some(cpu)) => format!(", in a [[when]] that holds on {cpu}"),
                    _ => String::new(),
                };
                let by = self.included_by(entry).into_iter().map(shown_name);
                let by = match by.collect::<Vec<_>>().join(", ") {
                    by if by.is_empty() => by,
                    by => format!(", included by {by}"),
                };
                let action = one_line(&explanation.action.to_string());
                format!("{file}:{line} has {action} for {key}{when}{by}")
            }
            (_, None) => format!(
                "no entry of {} names this MSR, so `default` decides",
                shown_name(self.policy.source().name())
            ),
        }
    }

    /// Returns in words the part of the filter that decides the access, and the verdict.
    fn mechanism(&self, explanation: &Explanation<'_>) -> String {
        let verdict = match explanation.decision.verdict {
            Verdict::Allow => "allows the access",
            Verdict::Deny => "refuses the access",
        };
        let ranges = self.variant.filter().ranges();
        let number = explanation.range();
        let range = number.and_then(|number| Some((number, ranges.get(number)?)));
        match (range, self.bit(explanation)) {
            (Some((number, range)), Some(bit)) => format!(
                "bit {bit} of range {number} ({}, from {}) {verdict}",
                range.accesses(),
                range.base(),
            ),
            _ if explanation.by == DecidedBy::Kvm => "KVM does not ask the filter".to_owned(),
            _ => format!("no range contains the MSR, so the filter's default {verdict}"),
        }
    }
}

fn kernel_row(reported: Reported) -> KernelRow {
    let none = |reports| KernelRow {
        reports,
        exit: None,
        reason: None,
        reason_bit: None,
    };
    match reported {
        Reported::Nothing => none("nothing"),
        Reported::Fault => none("gp"),
        Reported::Exit(number, reason) => exit_row(number, reason),
    }
}

/// Returns the remark about the way in which the gate in the VMM notices an access that the policy allows
/// and logs.
fn seen(explanation: &Explanation<'_>) -> &'static str {
    let is_carried = msrgate_policy::forward(explanation.index).is_some();
    match (explanation.decision.verdict, explanation.log) {
        (Verdict::Deny, _) | (_, Log::None | Log::Denied) => "",
        (Verdict::Allow, Log::All) if is_carried => {
            "; to see each access, the gate's filter refuses it, and the gate carries it out"
        }
        (Verdict::Allow, _) => {
            "; to see the first access, the gate's filter refuses it, and then the guest repeats it"
        }
    }
}

fn exit_row(number: ExitNumber, reason: ExitReason) -> KernelRow {
    KernelRow {
        reports: "exit",
        exit: Some(number.get()),
        reason: Some(reason.to_string()),
        reason_bit: reason.bit(Revision::Mainline).map(ReasonMask::bits),
    }
}
