//! The report of `msrgate replay`: text for people, and JSON for programs.

use std::io::{self, Write};

use msrgate_filter::{Access, X2APIC};
use msrgate_policy::trace::{Fate, LineNumber, Replay, Row, Task, Totals};
use msrgate_policy::{Cpu, DecidedBy, Entry, explain, registers, shown_name};
use serde::Serialize;

use crate::failure::Answer;
use crate::output::{self, SCHEMA};

use super::selected::Selected;

/// The largest number of rows that the text report shows for one verdict. The JSON report has all rows.
const SHOWN: usize = 40;

/// The largest number of tasks that a message names.
const SHOWN_TASKS: usize = 8;

/// Sentences about accesses, each with a fact that a trace of the event `kvm:kvm_msr` cannot show.
const CANNOT_SHOW: [&str; 7] = [
    "accesses that a filter sent to user space: their only event is kvm_userspace_exit with reason 29 or 30, which does not name the MSR",
    "accesses that never leave the guest: MSRs that KVM passes through (FS and GS base, SYSENTER, SPEC_CTRL and others), and x2APIC registers with APICv or AVIC",
    "the origin of a refusal: a #GP by a filter that was set during the trace looks like a #GP by KVM itself",
    "writes that bypass the filter: KVM may handle a write of IA32_TSC_DEADLINE (0x6e0) on a fast path that asks no filter, and the trace shows it like any other write",
    "the answer of a handler or a device of the VMM: it may refuse an access that is counted as answered here",
    "accesses by nested guests: a gate refuses their writes to registers that the policy masks or pins, and the trace shows them like other accesses",
    "accesses by the VMM (KVM_GET_MSRS, KVM_SET_MSRS), and those of a nested guest that its own hypervisor handles",
];

#[derive(Serialize)]
pub(super) struct Report<'r> {
    schema: u32,
    policy: &'r str,
    trace: &'r str,
    /// The processor that the report is about; null if the policy is the same for all processors.
    cpu: Option<String>,
    /// True if the trace was read to its end, and it is certain that the policy denies none of the trace's
    /// accesses.
    ok: bool,
    /// The last line that was read before a Ctrl-C; null if the trace was read to its end.
    stopped_after_line: Option<u64>,
    lines: u64,
    accesses: u64,
    allowed: u64,
    answered: u64,
    /// The number of writes for which it is uncertain if the policy denies them: the decision depends on the
    /// register's value, which the trace does not show.
    unsure: u64,
    refused: u64,
    rows: Vec<Listed<'r>>,
    /// The number of accesses that `rows` leaves out, because the size of `rows` is bounded. The counts in
    /// the other fields include these accesses.
    unlisted: u64,
    deflected: Deflected,
    other_events: u64,
    /// The tasks that made accesses in the trace, including tasks that `--task` does not select.
    tasks: Vec<OfTask>,
    /// One task of each VM, if the trace shows accesses of several VMs; empty if it shows one VM, or does
    /// not tell.
    several_vms: Vec<String>,
    /// The number of accesses of tasks that `--task` does not select. The number `other_events` counts them,
    /// too.
    skipped: u64,
    /// The number of accesses whose task the trace does not name, if `--task` selects tasks. The number `other_events`
    /// counts them, too.
    without_task: u64,
    lost_events: u64,
    unreadable: Unreadable,
    cannot_show: [&'static str; 7],
}

#[derive(Serialize)]
struct Listed<'r> {
    index: String,
    name: Option<&'static str>,
    access: String,
    verdict: &'static str,
    count: u64,
    /// The number of accesses of this row for which the guest got #GP when the trace was recorded.
    faulted: u64,
    first_line: u64,
    first_value: Option<String>,
    /// The line of the policy that decides about the accesses; null if the default action decides, and for
    /// x2APIC registers.
    policy_line: Option<u32>,
    /// The file of the line that decides about the accesses: the policy itself, or a file that the policy
    /// includes.
    policy_file: Option<&'r str>,
    entry: Option<&'r str>,
}

#[derive(Serialize)]
struct OfTask {
    task: String,
    accesses: u64,
}

#[derive(Serialize)]
struct Deflected {
    reads: u64,
    writes: u64,
}

#[derive(Serialize)]
struct Unreadable {
    count: u64,
    first_lines: Vec<u64>,
}

pub(super) fn for_programs<'r>(
    trace: &'r str,
    (replay, selected): (&Replay<'r>, &Selected<'_>),
    cpu: Option<&Cpu>,
    stopped: Option<LineNumber>,
    answer: Answer,
) -> Report<'r> {
    let totals = replay.totals();
    let rows = Fate::ALL.into_iter().flat_map(|fate| replay.rows(fate));
    let first = totals.first_unreadable.iter();
    Report {
        schema: SCHEMA,
        policy: replay.policy().source().name(),
        trace,
        cpu: cpu.map(ToString::to_string),
        ok: answer == Answer::Yes,
        stopped_after_line: stopped.map(LineNumber::get),
        lines: totals.lines,
        accesses: totals.accesses(),
        allowed: totals.allowed,
        answered: totals.answered,
        unsure: totals.unsure,
        refused: totals.refused,
        rows: rows.map(|row| listed(replay, &row)).collect(),
        unlisted: totals.unlisted,
        deflected: Deflected {
            reads: totals.deflected[Access::Read as usize],
            writes: totals.deflected[Access::Write as usize],
        },
        other_events: totals.other,
        tasks: tasks(selected),
        several_vms: several_vms(selected),
        skipped: selected.skipped(),
        without_task: selected.nameless(),
        lost_events: totals.lost,
        unreadable: Unreadable {
            count: totals.unreadable,
            first_lines: first.map(|line| line.get()).collect(),
        },
        cannot_show: CANNOT_SHOW,
    }
}

fn tasks(selected: &Selected<'_>) -> Vec<OfTask> {
    let tasks = selected.tasks().iter();
    let of_task = |(task, accesses): (Task<'_>, u64)| OfTask {
        task: shown_name(&task.to_string()),
        accesses,
    };
    tasks.map(of_task).collect()
}

fn several_vms(selected: &Selected<'_>) -> Vec<String> {
    let tasks = selected.tasks().of_several_vms().into_iter();
    tasks.map(|task| shown_name(&task.to_string())).collect()
}

fn listed<'r>(replay: &Replay<'r>, row: &Row) -> Listed<'r> {
    let explanation = explain(replay.policy(), replay.variant(), row.index, row.access);
    Listed {
        index: row.index.to_string(),
        name: output::name(row.index),
        access: row.access.to_string(),
        verdict: word(row.fate),
        count: row.count,
        faulted: row.faulted,
        first_line: row.first.get(),
        first_value: row.value.map(|value| format!("{value:#x}")),
        policy_line: explanation.entry.map(|entry| entry.place().line),
        policy_file: explanation
            .entry
            .map(|entry| replay.policy().text(entry.source()).name()),
        entry: explanation.entry.map(Entry::key),
    }
}

const fn word(fate: Fate) -> &'static str {
    match fate {
        Fate::Allowed => "allow",
        Fate::Answered => "answer",
        Fate::Unsure => "unsure",
        Fate::Refused => "deny",
    }
}

/// Returns the message that says why `replay` gives no answer for a trace without accesses.
pub(in crate::commands) fn no_access(totals: &Totals, selected: &Selected<'_>) -> String {
    let why = match named(selected) {
        Some(tasks) if selected.is_part() => {
            format!("no access is of a task of --task; the trace has the tasks {tasks}")
        }
        _ if totals.lines == 0 => "the trace has no MSR access: it is empty; a run of `exec --events` writes a line as soon as it has a VM".to_owned(),
        _ if totals.unreadable > 0 => "msrgate could read no MSR access in the trace; record the event kvm:kvm_msr, and print it with tracefs, `perf script`, `perf trace` or `trace-cmd report`".to_owned(),
        _ => "the trace has no MSR access; record the event kvm:kvm_msr, and print it with tracefs, `perf script`, `perf trace` or `trace-cmd report`".to_owned(),
    };
    let remarks = remarks(totals, selected).into_iter();
    let remarks: String = remarks.map(|remark| format!("\n  {remark}")).collect();
    format!("{why}{remarks}")
}

pub(super) fn for_people(
    out: &mut dyn Write,
    trace: &str,
    (replay, selected): (&Replay<'_>, &Selected<'_>),
    answer: Answer,
) -> io::Result<()> {
    let totals = replay.totals();
    let [trace, policy] = [trace, replay.policy().source().name()].map(shown_name);
    let (style, verdict) = match answer {
        Answer::Yes => (
            anstyle::AnsiColor::Green,
            "none would be refused".to_owned(),
        ),
        Answer::Incomplete if totals.unsure > 0 => (
            anstyle::AnsiColor::Yellow,
            format!("{} may be refused", totals.unsure),
        ),
        Answer::Incomplete => (
            anstyle::AnsiColor::Yellow,
            "none would be refused, but a part of the trace is missing".to_owned(),
        ),
        // A replay runs no VMM, so that it has no status of one.
        Answer::No | Answer::Status(_) => {
            let refused = format!("{} would be refused", totals.refused);
            (anstyle::AnsiColor::Red, refused)
        }
    };
    let style = style.on_default().bold();
    writeln!(
        out,
        "{trace} under {policy}: of {}, {style}{verdict}{style:#}",
        counted(totals.accesses(), "access", "accesses"),
    )?;
    for fate in Fate::ALL {
        section(out, replay, fate)?;
    }
    for remark in remarks(totals, selected) {
        writeln!(out, "{remark}")?;
    }
    writeln!(out, "a trace of this event never shows:")?;
    for blind in CANNOT_SHOW {
        writeln!(out, "  - {blind}")?;
    }
    Ok(())
}

fn section(out: &mut dyn Write, replay: &Replay<'_>, fate: Fate) -> io::Result<()> {
    let rows = replay.rows(fate);
    if rows.is_empty() {
        return Ok(());
    }
    let bold = anstyle::Style::new().bold();
    let title = match fate {
        Fate::Refused => "would be refused",
        Fate::Unsure => {
            "may be refused: the answer depends on the vCPU and the register's value, which the trace does not show"
        }
        Fate::Answered => "would be answered by user space",
        Fate::Allowed => "would be allowed",
    };
    writeln!(out, "{bold}{title}{bold:#}")?;
    for row in rows.iter().take(SHOWN) {
        let title = registers::titled(row.index);
        let (access, count) = (row.access.to_string(), row.count);
        write!(out, "  {access:<5} {count:>8}  {title:<32}  {}", first(row))?;
        match fate {
            Fate::Refused | Fate::Unsure | Fate::Answered => {
                writeln!(out, "{}; {}", faulted(row), said(replay, row))?;
            }
            Fate::Allowed => writeln!(out, "{}{}", faulted(row), exempt(row))?,
        }
    }
    if let Some(more @ 1..) = rows.len().checked_sub(SHOWN) {
        writeln!(out, "  and {more} more; `--format json` lists all")?;
    }
    Ok(())
}

fn first(row: &Row) -> String {
    match row.value {
        Some(value) => format!("first at line {}, value {value:#x}", row.first),
        None => format!("first at line {}", row.first),
    }
}

/// Returns the remark that the guest got #GP for these accesses when the trace was recorded.
fn faulted(row: &Row) -> String {
    match (row.faulted, row.count) {
        (0, _) => String::new(),
        (faulted, count) if faulted == count => ", also got #GP in the trace".to_owned(),
        (faulted, count) => format!(", {faulted} of {count} also got #GP in the trace"),
    }
}

/// Returns the remark about an x2APIC register, which KVM never filters (S3.1).
fn exempt(row: &Row) -> &'static str {
    if X2APIC.contains(&row.index) {
        "; KVM never filters it (S3.1)"
    } else {
        ""
    }
}

/// Returns words for the part of the policy that decides about the accesses of a row.
fn said(replay: &Replay<'_>, row: &Row) -> String {
    let explanation = explain(replay.policy(), replay.variant(), row.index, row.access);
    match (explanation.by, explanation.entry) {
        (DecidedBy::Entry(_), Some(entry)) => {
            let place = output::where_it_stands(replay.policy(), entry);
            format!("decided by {place}")
        }
        _ => "decided by `default`".to_owned(),
    }
}

/// Returns the tasks of a trace as text for a message: the first [`SHOWN_TASKS`] of them, and the number of
/// the others.
fn named(selected: &Selected<'_>) -> Option<String> {
    let tasks = tasks(selected);
    let first: Vec<_> = tasks
        .iter()
        .take(SHOWN_TASKS)
        .map(|one| one.task.as_str())
        .collect();
    let more = match tasks.len().saturating_sub(SHOWN_TASKS) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    (!first.is_empty()).then(|| format!("{}{more}", first.join(", ")))
}

fn remarks(totals: &Totals, selected: &Selected<'_>) -> Vec<String> {
    let mut remarks = of_tasks(selected);
    if totals.unlisted > 0 {
        let unlisted = counted(totals.unlisted, "access is", "accesses are");
        remarks.push(format!(
            "{unlisted} counted above but not listed, because the trace has too many MSRs"
        ));
    }
    let [reads, writes] = totals.deflected;
    if totals.nameless() > 0 {
        remarks.push(format!(
            "{} and {} went to user space, and the trace does not name their MSRs, so msrgate cannot say what the policy would do; record without a filter, or events of `msrgate exec`",
            counted(reads, "read", "reads"),
            counted(writes, "write", "writes"),
        ));
    }
    if totals.lost > 0 {
        let lost = counted(totals.lost, "event is", "events are");
        remarks.push(format!(
            "at least {lost} missing, because the tracer's buffer was full; record again with a larger buffer"
        ));
    }
    if totals.unreadable > 0 {
        let lines = counted(totals.unreadable, "line", "lines");
        remarks.push(format!(
            "msrgate skipped {lines} that it could not read: {}",
            places(totals.unreadable, &totals.first_unreadable)
        ));
    }
    if totals.may_be_of_nested_guests() {
        let writes = counted(totals.carried, "write", "writes");
        remarks.push(format!(
            "nested guests ran, and {writes} may be theirs: a gate refuses writes by nested guests to registers that the policy masks or pins"
        ));
    }
    if totals.is_cut {
        remarks.push("the trace is cut off: its last line has no line feed".to_owned());
    }
    let others = totals.other - selected.skipped() - selected.nameless();
    if others > 0 {
        let was = if others == 1 { "was" } else { "were" };
        let others = counted(others, "line has another event", "lines have other events");
        remarks.push(format!("{others} and {was} skipped"));
    }
    remarks
}

/// Returns the remarks of the text report about the tasks of a trace.
fn of_tasks(selected: &Selected<'_>) -> Vec<String> {
    let mut remarks = Vec::new();
    let vms = several_vms(selected);
    if !vms.is_empty() && !selected.is_part() {
        let first: Vec<_> = vms.iter().take(SHOWN_TASKS).map(String::as_str).collect();
        remarks.push(format!(
            "the trace is of {} VMs, and the answer is for all of them together ({}); to select a VM, name its tasks by --task",
            vms.len(),
            first.join(", ")
        ));
    }
    if selected.skipped() > 0 {
        let skipped = counted(selected.skipped(), "access was", "accesses were");
        remarks.push(format!(
            "{skipped} skipped, of other tasks than those of --task"
        ));
    }
    if selected.nameless() > 0 {
        let nameless = counted(selected.nameless(), "access was", "accesses were");
        remarks.push(format!(
            "{nameless} skipped, because the trace does not name the task; without --task all are counted"
        ));
    }
    remarks
}

/// Returns the numbers of the trace's lines as text, such as `line 3`, `lines 3, 7`, or
/// `lines 1, 2, 3, 4, 5 and 8 more`.
fn places(count: u64, first: &[LineNumber]) -> String {
    let named: Vec<_> = first.iter().map(ToString::to_string).collect();
    let more = match count - first.len() as u64 {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    let word = if count == 1 { "line" } else { "lines" };
    format!("{word} {}{more}", named.join(", "))
}

/// Returns a number with its noun, such as `1 access` or `2 accesses`.
fn counted(count: u64, one: &str, several: &str) -> String {
    match count {
        1 => format!("1 {one}"),
        count => format!("{count} {several}"),
    }
}
