//! The text about a run at its end, and the JSON line of each event.

use std::fmt::Write as _;

use msrgate_filter::ExitReason;
use msrgate_policy::answer::Disposition;
use msrgate_policy::{FileId, Origin, Program, registers, shown_json};
use msrgate_state::{Event, Recorded, Snapshot};
use serde_json::json;

use super::allow;
use super::supported::origin;
use crate::output::count;

/// The number of refused kinds that the summary lists. That of an audit lists all: it is what a policy is written from.
const LISTED: usize = 20;

/// The time of a summary.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Time {
    /// The run goes on.
    SoFar,
    /// No process of the run is left.
    End,
}

/// Returns the sentence for a run without a VM. Programs such as `qemu-system-x86_64 -version` end as they would, so only
/// the file of `--summary` gets it.
pub(super) fn without_vm(policy: &str) -> String {
    format!("msrgate: {policy} guarded no VM: no program of the run has got one of KVM\n")
}

/// Returns the summary: what was refused in a run, and how to allow it. Returns an empty text if the run had
/// no VM.
pub(super) fn text(snapshot: &Snapshot, program: &Program, policy: &str, time: Time) -> String {
    let guarded = usize::try_from(snapshot.vms_guarded()).unwrap_or(usize::MAX);
    if guarded == 0 {
        return String::new();
    }
    let recorded = snapshot.recorded();
    let (refused, others): (Vec<_>, Vec<_>) = recorded
        .iter()
        .partition(|one| one.first.kind.disposition.is_refusal());
    let sum = |all: &[&Recorded]| {
        all.iter()
            .map(|one| one.count)
            .fold(0_u64, u64::saturating_add)
    };
    let mut vms = count(guarded, "VM", "VMs");
    if time == Time::SoFar {
        vms += " so far";
    }
    let mut text = if refused.is_empty() {
        format!("msrgate: {policy} guarded {vms}, and refused nothing")
    } else {
        let accesses = count(
            usize::try_from(sum(&refused)).unwrap_or(usize::MAX),
            "access",
            "accesses",
        );
        format!(
            "msrgate: {policy} guarded {vms}, and {} {accesses}",
            verb(&refused)
        )
    };
    let is_seen = |one: &&Recorded| one.first.kind.disposition == Disposition::Allowed;
    let (seen, answered): (Vec<&Recorded>, Vec<_>) = others.into_iter().partition(is_seen);
    if !answered.is_empty() {
        let _ = write!(text, "; it answered {} itself", sum(&answered));
    }
    text.push('\n');
    if time == Time::SoFar {
        text.push_str("  the run goes on in the background; to have the summary of its end, name a file by --summary\n");
    }
    let is_audit = is_audit(&refused);
    if is_audit {
        text.push_str("  an audit counts the first access of each kind in a VM, and lets it and all others through\n");
    }
    for list in [refused, seen] {
        let listed = if is_audit { list.len() } else { LISTED };
        for one in list.iter().take(listed) {
            let _ = writeln!(text, "  {}", line(one, snapshot, program, policy));
        }
        if let Some(more @ 1..) = list.len().checked_sub(listed) {
            let kinds = count(more, "more kind", "more kinds");
            let _ = writeln!(text, "  and {kinds}; to have all, name a file by --events");
        }
    }
    if snapshot.others() > 0 {
        let _ = writeln!(
            text,
            "  and {} of kinds that found no place to be recorded",
            snapshot.others()
        );
    }
    text
}

fn is_audit(refused: &[&Recorded]) -> bool {
    let mut dispositions = refused.iter().map(|one| one.first.kind.disposition);
    dispositions.any(|one| matches!(one, Disposition::WouldDeny | Disposition::WouldKill))
}

fn verb(refused: &[&Recorded]) -> &'static str {
    if is_audit(refused) {
        "would have refused at least"
    } else {
        "refused"
    }
}

/// Returns a line such as `8 reads of 0x8b IA32_BIOS_SIGN_ID by deny.toml:4, first by vCPU 0 after 0.31 s;
/// to allow: …`.
fn line(one: &Recorded, snapshot: &Snapshot, program: &Program, policy: &str) -> String {
    let (first, kind) = (&one.first, one.first.kind);
    let access = kind.access.to_string();
    let accesses = count(
        usize::try_from(one.count).unwrap_or(usize::MAX),
        &access,
        &format!("{access}s"),
    );
    let is_seen = kind.disposition == Disposition::Allowed;
    let mut text = if is_seen {
        // Further ones are let through by the kernel, uncounted.
        format!("first {access} of {}", kind.index)
    } else {
        format!("{accesses} of {}", kind.index)
    };
    if let Some(register) = registers::by_index(kind.index) {
        let _ = write!(text, " {}", register.name);
    }
    let vm = usize::try_from(first.vm)
        .ok()
        .and_then(|at| snapshot.vms().get(at).copied());
    let after = vm.map(|vm| first.time.saturating_sub(vm.time) / 1_000_000);
    let who = if is_seen {
        format!("by vCPU {}", first.vcpu)
    } else {
        format!("first by vCPU {}", first.vcpu)
    };
    let when = after.map_or_else(String::new, |millis| {
        format!(" after {}.{:03} s", millis / 1000, millis % 1000)
    });
    if is_seen {
        let by = origin(program, first.origin, policy);
        let _ = write!(text, ", logged by {by}, {who}{when}");
    } else if kind.reason == ExitReason::Filter {
        let by = origin(program, first.origin, policy);
        let _ = write!(text, " by {by}, {who}{when}");
        if let Some(entry) = allow::line(program, kind.index, kind.access) {
            let _ = write!(text, "; to allow: {entry}");
        }
    } else {
        let _ = write!(
            text,
            ", which KVM does not know, {who}{when}; to answer: an entry with `value` or `ignore`, or [unknown]"
        );
    }
    text
}

/// Returns an event as a line of JSON. `policy` in it is the file of the line that decided, or the policy itself.
pub(super) fn json(event: &Event, program: &Program) -> String {
    let (file, line) = match event.origin {
        Origin::Line(line) => (line.file, Some(line.number)),
        Origin::Default | Origin::Kvm => (FileId::new(0), None),
    };
    let mut object = json!({
        "schema": 1,
        "time_ns": event.time,
        "pid": event.pid,
        "vm": event.vm,
        "vcpu": event.vcpu,
        "msr": event.kind.index.to_string(),
        "access": event.kind.access.to_string(),
        "reason": event.kind.reason.to_string(),
        "action": event.kind.disposition.to_string(),
        "policy": program.file(file),
        "digest": program.digest().to_string(),
    });
    if let Some(line) = line {
        object["line"] = json!(line);
    }
    format!("{}\n", shown_json(&object.to_string()))
}
