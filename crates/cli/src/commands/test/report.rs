//! The report of `msrgate test`.

use std::io::{self, Write};

use msrgate_filter::{Access, ExitReason, MsrIndex, Verdict};
use msrgate_kvm::HostError;
use msrgate_kvm::measure::{BackendKind, Measured, NotTried, Pass, Seen};
use msrgate_policy::{Cpu, Mode, Policy, Variant, one_line, registers, shown_name, write_effect};
use serde::Serialize;

use super::Measures;
use crate::named::shown;
use crate::output::{self, SCHEMA};

#[derive(Serialize)]
struct Report {
    schema: u32,
    backend: String,
    /// The processor that the report is about; null if the policy is the same for all processors.
    cpu: Option<String>,
    cases: Vec<Row>,
    summary: Summary,
}

/// The result of one access in one pass of the test.
#[derive(Serialize)]
struct Row {
    index: String,
    name: Option<&'static str>,
    access: String,
    /// The pass of the test. In the pass `exits`, user space asks KVM for an exit for every reason; in the
    /// pass `faults`, it asks for no exit.
    pass: &'static str,
    expected: &'static str,
    observed: &'static str,
    /// The reason of the exit to user space; or, if the guest got a fault, KVM's own reason to refuse the
    /// access; or the reason why the test did not try the access.
    reason: Option<String>,
    value: Option<String>,
    ok: bool,
    deviations: Vec<Broken>,
}

#[derive(Serialize)]
struct Broken {
    statement: &'static str,
    seen: String,
}

#[derive(Serialize)]
struct Summary {
    msrs: usize,
    cases: usize,
    ok: usize,
    deviations: usize,
    not_tried: usize,
}

impl Summary {
    fn of(measured: &[Measured]) -> Self {
        let mut indices: Vec<_> = measured.iter().map(|one| one.case.index).collect();
        indices.sort_unstable();
        indices.dedup();
        let count = |is: fn(&Measured) -> bool| measured.iter().filter(|one| is(one)).count();
        Self {
            msrs: indices.len(),
            cases: measured.len(),
            ok: count(|one| one.is_ok() && !matches!(one.seen, Seen::NotTried(_))),
            deviations: count(|one| !one.is_ok()),
            not_tried: count(|one| matches!(one.seen, Seen::NotTried(_))),
        }
    }
}

pub(super) fn json(
    out: &mut dyn Write,
    (backend, cpu): (BackendKind, Option<&Cpu>),
    measured: &[Measured],
) -> io::Result<()> {
    output::json(
        out,
        &Report {
            schema: SCHEMA,
            backend: backend.to_string(),
            cpu: cpu.map(ToString::to_string),
            cases: measured.iter().map(row).collect(),
            summary: Summary::of(measured),
        },
    )
}

fn row(measured: &Measured) -> Row {
    let case = measured.case;
    let (observed, reason) = match measured.seen {
        Seen::Value(_) | Seen::Written => ("value", None),
        Seen::Fault => ("gp", measured.own_fault.map(|reason| reason.to_string())),
        Seen::Exit(reason) => ("exit", reason.map(|reason| reason.to_string())),
        Seen::NotTried(why) => ("not-tried", Some(not_tried(case.index, why))),
    };
    Row {
        index: case.index.to_string(),
        name: output::name(case.index),
        access: case.access.to_string(),
        pass: match measured.pass {
            Pass::Exits => "exits",
            Pass::Faults => "faults",
        },
        expected: word(case.expected),
        observed,
        reason,
        value: match measured.seen {
            Seen::Value(value) => Some(format!("{value:#x}")),
            _ => None,
        },
        ok: measured.is_ok(),
        deviations: measured
            .deviations
            .iter()
            .map(|deviation| Broken {
                statement: deviation.statement,
                seen: deviation.seen.clone(),
            })
            .collect(),
    }
}

fn word(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Allow => "allow",
        Verdict::Deny => "deny",
    }
}

fn not_tried(index: MsrIndex, why: NotTried) -> String {
    match why {
        NotTried::ActsAtOnce => format!(
            "a write {}",
            write_effect(index).unwrap_or("does more than store its value")
        ),
        NotTried::Unreadable => {
            "the register cannot be read, so there is no value to write back".to_owned()
        }
    }
}

/// Prints the lines above the results: the backend on which the guest runs, and the policy.
pub(super) fn heading(
    out: &mut dyn Write,
    policy: &Policy,
    variant: &Variant,
    measures: &Measures,
) -> io::Result<()> {
    let loud = anstyle::AnsiColor::Yellow.on_default().bold();
    let model = "these are results of the built-in model, not of this host's kernel";
    match measures {
        Measures::Kernel(release) => writeln!(out, "A guest in a real VM, KVM of Linux {release}")?,
        Measures::Nothing => writeln!(out, "{loud}{model}{loud:#}")?,
        Measures::NothingFor(error @ HostError::Absent { device }) => {
            writeln!(out, "{loud}no {}: {model}{loud:#}", shown(device))?;
            writeln!(out, "  {}", error.advice())?;
        }
        Measures::NothingFor(error) => {
            writeln!(out, "{loud}{error}: {model}{loud:#}")?;
            writeln!(out, "  {}", error.advice())?;
        }
    }
    writeln!(
        out,
        "{}: {} in {} of 16 ranges, default {}",
        shown_name(policy.source().name()),
        output::count(policy.entries().len(), "entry", "entries"),
        variant.filter().ranges().len(),
        policy.default_action().word(),
    )?;
    if policy.settings().mode == Mode::Audit {
        writeln!(
            out,
            "`mode = \"audit\"` needs a gate, and this guest has none: the filter refuses what an audit would let through"
        )?;
    }
    writeln!(out)
}

/// Prints one line for each access: the result that the policy promises, and the result that the guest got
/// in each of the two passes.
pub(super) fn text(out: &mut dyn Write, policy: &Policy, measured: &[Measured]) -> io::Result<()> {
    let (exits, faults) = measured.split_at(measured.len() / 2);
    let bold = anstyle::Style::new().bold();
    writeln!(
        out,
        "{bold}{:<44} {:<6} {:<8} the guest got{bold:#}",
        "MSR", "access", "promise"
    )?;
    for (with_exits, without) in exits.iter().zip(faults) {
        line(out, with_exits, without)?;
    }
    let summary = Summary::of(measured);
    let tried = summary.cases - summary.not_tried;
    writeln!(
        out,
        "\n{}, {} accesses, each tried twice: with exits for every reason, and without exits",
        output::count(summary.msrs, "MSR", "MSRs"),
        summary.cases / 2,
    )?;
    let style = if summary.deviations == 0 {
        anstyle::AnsiColor::Green.on_default().bold()
    } else {
        anstyle::AnsiColor::Red.on_default().bold()
    };
    writeln!(
        out,
        "{style}{} of {tried} results as {} promises, {} deviations{style:#}, {} not tried",
        summary.ok,
        one_line(policy.name().unwrap_or("the policy")),
        summary.deviations,
        summary.not_tried,
    )
}

fn line(out: &mut dyn Write, exits: &Measured, faults: &Measured) -> io::Result<()> {
    let case = exits.case;
    let red = anstyle::AnsiColor::Red.on_default().bold();
    let title = match case.access {
        Access::Read => registers::titled(case.index),
        Access::Write => String::new(),
    };
    let got = got(exits, faults);
    writeln!(
        out,
        "{title:<44} {:<6} {:<8} {got}",
        case.access.to_string(),
        word(case.expected)
    )?;
    for deviation in exits.deviations.iter().chain(&faults.deviations) {
        writeln!(out, "{:<44} {red}{deviation}{red:#}", "")?;
    }
    Ok(())
}

/// Returns the results of one access in both passes, in a few words.
fn got(exits: &Measured, faults: &Measured) -> String {
    match (exits.seen, faults.seen) {
        (Seen::NotTried(why), _) => format!("not tried: {}", not_tried(exits.case.index, why)),
        (Seen::Value(value), Seen::Value(_)) => format!("{value:#x}"),
        (Seen::Written, Seen::Written) => "written back".to_owned(),
        (Seen::Exit(Some(ExitReason::Filter)), Seen::Fault) => {
            "#GP, or an exit with reason filter".to_owned()
        }
        (Seen::Exit(Some(own)), Seen::Fault) => {
            format!("the filter let the access pass; KVM reports {own}")
        }
        (one, other) => format!("{}, then {}", alone(one), alone(other)),
    }
}

fn alone(seen: Seen) -> String {
    match seen {
        Seen::Value(value) => format!("{value:#x}"),
        Seen::Written => "written back".to_owned(),
        Seen::Exit(Some(reason)) => format!("an exit with reason {reason}"),
        Seen::Exit(None) => "an exit with no reason, or with several reasons".to_owned(),
        Seen::Fault => "#GP".to_owned(),
        Seen::NotTried(_) => "not tried".to_owned(),
    }
}
