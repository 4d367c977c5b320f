//! The extent to which each entry of a policy is enforced.

use std::io::{self, Write};

use msrgate_policy::emit::{self, Loss};
use msrgate_policy::registers::{self, Gap};
use msrgate_policy::{
    Action, Bypass, Cause, Compiled, Enforcement, Enforcer, Extent, Policy, enforcement, one_line,
    shown_name,
};
use serde::Serialize;

use super::super::exec;
use super::SHOWN;
use crate::cli::Detail;
use crate::output;

/// The JSON of the enforcement: all entries, and the numbers of entries that are enforced, partly enforced,
/// not enforced, and idle (they decide nothing).
#[derive(Serialize)]
pub(super) struct Counted {
    enforced: usize,
    partly: usize,
    not: usize,
    /// The extent to which `default` is enforced: `enforced`, `partly` or `not`.
    default: String,
    /// The number of entries whose accesses a gate in the VMM must answer, or let through in audit mode; without
    /// a gate these accesses are denied.
    by_gate: usize,
    /// The keys at the top of the policy that need a gate: `mode`, `default`, `unknown` or `log`.
    settings_by_gate: Vec<&'static str>,
    /// The number of entries that decide nothing, because other entries override them or decide all of their
    /// MSRs.
    idle: usize,
    entries: Vec<EnforcedEntry>,
    /// The gaps through which any register can bypass the filter, but only in some VMs.
    in_some_vms: Vec<VmGap>,
}

#[derive(Serialize)]
struct EnforcedEntry {
    /// The entry's key, or `default`, which has neither file nor line.
    entry: String,
    file: Option<String>,
    line: Option<u32>,
    /// The extent to which the entry is enforced: `enforced`, `partly` or `not`.
    extent: String,
    /// The part that enforces the entry: `filter`, KVM's MSR filter, or `gate`, the gate in the VMM.
    by: String,
    /// The accesses that bypass the entry. Version 1 of the JSON calls them `holes`.
    #[serde(rename = "holes")]
    bypasses: Vec<BypassRow>,
}

/// The JSON of the accesses that bypass an entry.
#[derive(Serialize)]
pub(crate) struct BypassRow {
    /// The first MSR that bypasses the entry; null if the bypass is about all MSRs that the policy
    /// denies.
    first: Option<String>,
    last: Option<String>,
    access: String,
    name: &'static str,
    why: String,
    /// True if the policy's setting `accept` names the bypass.
    accepted: bool,
}

#[derive(Serialize)]
struct VmGap {
    name: &'static str,
    why: &'static str,
    on: String,
    kernels: String,
    accepted: bool,
}

impl BypassRow {
    pub(crate) fn of(policy: &Policy, bypass: &Bypass) -> Self {
        Self {
            first: bypass.msrs.map(|msrs| msrs.first().to_string()),
            last: bypass.msrs.map(|msrs| msrs.last().to_string()),
            access: bypass.access.to_string(),
            name: bypass.cause.name(),
            why: why(policy, bypass.cause),
            accepted: bypass.cause.is_accepted(policy.settings()),
        }
    }
}

/// Returns the cause of a bypass in words, with the entry if another entry is the cause.
pub(crate) fn why(policy: &Policy, cause: Cause) -> String {
    match cause {
        Cause::Puncture(id) => {
            let entry = policy.entry(id);
            let file = shown_name(policy.text(entry.source()).name());
            let (key, line) = (one_line(entry.key()), entry.place().line);
            format!(
                "the included entry `{key}` at {file}:{line} lies within this entry and decides these accesses"
            )
        }
        cause => cause.why().to_owned(),
    }
}

/// Returns the remark that the policy accepts a bypass, or an empty text if the policy's setting `accept`
/// does not name it.
pub(crate) fn accepted(policy: &Policy, bypass: &Bypass) -> &'static str {
    if bypass.cause.is_accepted(policy.settings()) {
        " (accepted)"
    } else {
        ""
    }
}

fn accepts(policy: &Policy, gap: &Gap) -> bool {
    let mut accepted = policy.settings().accept.iter();
    accepted.any(|word| **word == *gap.name)
}

/// Returns the enforcement of each entry. The enforcement of the policy's `default` is left out.
fn entries(all: &[Enforcement]) -> impl Iterator<Item = &Enforcement> {
    all.iter().filter(|one| one.entry.is_some())
}

fn count(all: &[Enforcement], extent: Extent) -> usize {
    entries(all).filter(|one| one.extent == extent).count()
}

fn by_gate(all: &[Enforcement]) -> usize {
    entries(all)
        .filter(|one| one.enforcer == Enforcer::Gate)
        .count()
}

/// A setting of the policy that has no effect, or another one, without a gate.
struct ByGate {
    /// The key at the top of the policy.
    key: &'static str,
    /// The setting as the policy writes it.
    setting: &'static str,
    /// The effect of the setting without a gate.
    without: &'static str,
}

/// Returns the settings of a policy that need a gate.
fn settings_by_gate(compiled: &Compiled) -> Vec<ByGate> {
    let (program, policy) = (compiled.program(), compiled.policy());
    let variants = compiled.variants().iter();
    let lost: Vec<_> = variants
        .flat_map(|variant| emit::losses(program, variant))
        .collect();
    let is_audit = lost.contains(&Loss::Audit);
    let row = |key, setting, without| ByGate {
        key,
        setting,
        without,
    };
    let rows = [
        (
            is_audit,
            row(
                "mode",
                "`mode = \"audit\"`",
                "the policy refuses as with `mode = \"enforce\"`, and records nothing",
            ),
        ),
        (
            // In audit mode the default ends no guest.
            *policy.default_action() == Action::Kill && !is_audit,
            row(
                "default",
                "`default = \"kill\"`",
                "the guest gets #GP and goes on",
            ),
        ),
        (
            lost.contains(&Loss::Unknown),
            row(
                "unknown",
                "`unknown`",
                "the guest gets #GP for an MSR that KVM does not know",
            ),
        ),
        (
            lost.contains(&Loss::Log),
            row("log", "`log`", "accesses that are allowed make no events"),
        ),
    ];
    let needs = rows.into_iter().filter(|(needs, _)| *needs);
    needs.map(|(_, row)| row).collect()
}

/// Returns the extent to which the default is enforced. A default that decides nothing is enforced: no
/// access bypasses it.
fn of_default(all: &[Enforcement]) -> Extent {
    let default = all.iter().find(|one| one.entry.is_none());
    default.map_or(Extent::Enforced, |one| one.extent)
}

fn idle(policy: &Policy, all: &[Enforcement]) -> usize {
    policy.entries().len() - entries(all).count()
}

/// Returns the place of an entry, such as `policy.toml:7`, or the policy's name for the default.
fn place(policy: &Policy, one: &Enforcement) -> String {
    match one.entry.map(|id| policy.entry(id)) {
        Some(entry) => {
            let file = shown_name(policy.text(entry.source()).name());
            format!("{file}:{} {}", entry.place().line, one_line(entry.key()))
        }
        None => format!("{} default", shown_name(policy.source().name())),
    }
}

pub(super) fn report(compiled: &Compiled) -> Counted {
    let policy = compiled.policy();
    let all = enforcement(compiled);
    let row = |one: &Enforcement| {
        let entry = one.entry.map(|id| policy.entry(id));
        EnforcedEntry {
            entry: entry.map_or("default", |entry| entry.key()).to_owned(),
            file: entry.map(|entry| policy.text(entry.source()).name().to_owned()),
            line: entry.map(|entry| entry.place().line),
            extent: one.extent.to_string(),
            by: one.enforcer.to_string(),
            bypasses: one
                .bypasses
                .iter()
                .map(|bypass| BypassRow::of(policy, bypass))
                .collect(),
        }
    };
    let gap = |gap: &Gap| VmGap {
        name: gap.name,
        why: gap.why,
        on: gap.on.to_string(),
        kernels: gap.kernels.to_string(),
        accepted: accepts(policy, gap),
    };
    Counted {
        enforced: count(&all, Extent::Enforced),
        partly: count(&all, Extent::Partly),
        not: count(&all, Extent::Not),
        default: of_default(&all).to_string(),
        by_gate: by_gate(&all),
        settings_by_gate: settings_by_gate(compiled)
            .iter()
            .map(|one| one.key)
            .collect(),
        idle: idle(policy, &all),
        entries: all.iter().map(row).collect(),
        in_some_vms: registers::vm_gaps().iter().map(gap).collect(),
    }
}

/// Prints a line for each bypass. If `detail` is brief, prints only the first [`SHOWN`] of them.
fn print_bypasses(
    out: &mut dyn Write,
    policy: &Policy,
    bypasses: &[Bypass],
    detail: Detail,
) -> io::Result<()> {
    let shown = match detail {
        Detail::Brief => SHOWN,
        Detail::Full => usize::MAX,
    };
    for bypass in bypasses.iter().take(shown) {
        let accepted = accepted(policy, bypass);
        let of = bypass
            .msrs
            .map_or(String::new(), |msrs| format!(" of {msrs}"));
        let (access, why) = (bypass.access, why(policy, bypass.cause));
        writeln!(out, "           {access}{of}: {why}{accepted}")?;
    }
    match bypasses.len().saturating_sub(shown) {
        0 => Ok(()),
        more => writeln!(
            out,
            "           and {more} more accesses; --verbose lists all"
        ),
    }
}

/// Prints the numbers of entries by extent. Then prints the entries that are not wholly enforced; if
/// `detail` is full, prints all entries.
pub(super) fn print(out: &mut dyn Write, compiled: &Compiled, detail: Detail) -> io::Result<()> {
    let policy = compiled.policy();
    let all = enforcement(compiled);
    let bold = anstyle::Style::new().bold();
    let [enforced, partly, not] =
        [Extent::Enforced, Extent::Partly, Extent::Not].map(|extent| count(&all, extent));
    let (gate, idle) = (by_gate(&all), idle(policy, &all));
    writeln!(
        out,
        "{bold}enforcement{bold:#}: of {}, {enforced} enforced, {partly} partly, {not} not, {idle} without effect; `default` {}",
        output::count(policy.entries().len(), "entry", "entries"),
        of_default(&all),
    )?;
    let which = if exec::can_keep(compiled.program()) {
        "a gate, `msrgate exec` or one in the VMM"
    } else {
        "a gate in the VMM"
    };
    if gate > 0 {
        let (needs, accesses) = match gate {
            1 => ("needs", "its accesses"),
            _ => ("need", "their accesses"),
        };
        writeln!(
            out,
            "  {gate} of them {needs} {which}; without a gate, {accesses} are refused"
        )?;
    }
    for one in settings_by_gate(compiled) {
        let ByGate {
            setting, without, ..
        } = one;
        writeln!(out, "  {setting} needs {which}; without a gate, {without}")?;
    }
    for one in &all {
        if one.extent == Extent::Enforced && detail == Detail::Brief {
            continue;
        }
        let by = match (one.extent, one.enforcer) {
            (Extent::Not, _) | (_, Enforcer::Filter) => "",
            (_, Enforcer::Gate) => ", by a gate",
        };
        writeln!(
            out,
            "  {:<8} {}{by}",
            one.extent.to_string(),
            place(policy, one)
        )?;
        print_bypasses(out, policy, &one.bypasses, detail)?;
    }
    let gaps: Vec<_> = registers::vm_gaps()
        .iter()
        .filter(|gap| !accepts(policy, gap))
        .map(|gap| gap.name)
        .collect();
    if !gaps.is_empty() {
        writeln!(
            out,
            "  not fully enforced in VMs with: {} (see `msrgate help policy`)",
            gaps.join(", ")
        )?;
    }
    Ok(())
}
