//! `msrgate doctor`: tests the statements of `docs/kvm-semantics.md` on this host's KVM, one after the
//! other.

use std::io::Write;

use msrgate_kvm::measure::{Finding, statements};
use msrgate_kvm::{HostCaps, IgnoreMsrs, Module};
use serde::Serialize;

use crate::cli::{DoctorArgs, Format};
use crate::failure::{Answer, Failure};
use crate::output::{self, SCHEMA};

#[derive(Serialize)]
struct Report {
    schema: u32,
    host: Host,
    statements: Vec<Row>,
    summary: Summary,
}

#[derive(Serialize)]
struct Host {
    kernel: String,
    module: String,
    ignore_msrs: &'static str,
}

#[derive(Serialize)]
struct Row {
    statement: &'static str,
    text: &'static str,
    finding: &'static str,
    detail: Option<String>,
}

#[derive(Default, Serialize)]
struct Summary {
    hold: usize,
    differ: usize,
    cannot_be_shown: usize,
}

pub(super) fn run(args: &DoctorArgs, out: &mut dyn Write) -> Result<Answer, Failure> {
    let host = HostCaps::probe()
        .map_err(|error| Failure::Host(format!("{error}\n  {}", error.advice())))?;
    let mut summary = Summary::default();
    let mut rows = Vec::new();
    if args.format.format == Format::Text {
        heading(out, &host)?;
    }
    for statement in statements() {
        let finding = statement.measure(&host);
        match finding {
            Finding::Holds => summary.hold += 1,
            Finding::Differs { .. } => summary.differ += 1,
            Finding::CannotBeShown { .. } => summary.cannot_be_shown += 1,
        }
        let row = row(statement.number(), statement.text(), &finding);
        if args.format.format == Format::Text {
            print(out, &row, &finding)?;
        }
        rows.push(row);
    }
    let answer = if summary.differ == 0 {
        Answer::Yes
    } else {
        Answer::No
    };
    match args.format.format {
        Format::Text => writeln!(
            out,
            "\n{} statements hold, {} differ, {} cannot be shown on this host",
            summary.hold, summary.differ, summary.cannot_be_shown
        )?,
        Format::Json => output::json(
            out,
            &Report {
                schema: SCHEMA,
                host: Host {
                    kernel: host.release().to_owned(),
                    module: module(&host),
                    ignore_msrs: ignore_msrs(&host),
                },
                statements: rows,
                summary,
            },
        )?,
    }
    Ok(answer)
}

fn row(statement: &'static str, text: &'static str, finding: &Finding) -> Row {
    let (finding, detail) = match finding {
        Finding::Holds => ("holds", None),
        Finding::Differs { seen } => ("differs", Some(seen.clone())),
        Finding::CannotBeShown { why } => ("cannot-be-shown", Some((*why).to_owned())),
    };
    Row {
        statement,
        text,
        finding,
        detail,
    }
}

fn module(host: &HostCaps) -> String {
    match host.module() {
        Module::Intel => "kvm_intel".to_owned(),
        Module::Amd => "kvm_amd".to_owned(),
        Module::Other(name) => name.clone(),
        Module::NotSeen => "unknown".to_owned(),
    }
}

fn ignore_msrs(host: &HostCaps) -> &'static str {
    match host.ignore_msrs() {
        IgnoreMsrs::On => "on",
        IgnoreMsrs::Off => "off",
        IgnoreMsrs::NotSeen => "unknown",
    }
}

fn heading(out: &mut dyn Write, host: &HostCaps) -> Result<(), Failure> {
    writeln!(
        out,
        "KVM of Linux {}, module {}, ignore_msrs {}\n",
        host.release(),
        module(host),
        ignore_msrs(host)
    )?;
    if host.ignore_msrs() == IgnoreMsrs::On {
        writeln!(
            out,
            "kvm.ignore_msrs is on, for every guest of this host: an access of an MSR that KVM does not\nknow succeeds, and no VMM learns of it (S10.1). To answer such accesses for one VM only, and to log\nthem, turn ignore_msrs off and write `unknown = \"ignore\"` in the VM's policy.\n"
        )?;
    }
    Ok(())
}

fn print(out: &mut dyn Write, row: &Row, finding: &Finding) -> Result<(), Failure> {
    let (word, colour) = match finding {
        Finding::Holds => ("holds", anstyle::AnsiColor::Green.on_default()),
        Finding::Differs { .. } => ("DIFFERS", anstyle::AnsiColor::Red.on_default().bold()),
        Finding::CannotBeShown { .. } => ("not shown", anstyle::Style::new().dimmed()),
    };
    writeln!(
        out,
        "{:<7} {colour}{word:<9}{colour:#}  {}",
        row.statement, row.text
    )?;
    if let Some(detail) = &row.detail {
        writeln!(out, "{:<19}{detail}", "")?;
    }
    Ok(())
}
