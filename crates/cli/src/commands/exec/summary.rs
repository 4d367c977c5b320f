//! The text of a run's summary, and the JSON line for an event.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use msrgate_filter::{Access, Accesses, ExitReason};
use msrgate_policy::answer::Disposition;
use msrgate_policy::{Compiled, FileId, Log, Origin, Program, grant, registers, shown_json};
use msrgate_state::{Event, Recorded, Snapshot};
use serde_json::json;

use super::AtOpenDoor;
use super::supported::origin;
use crate::output::count;

/// The number of kinds of refused accesses that the summary lists. In audit mode it lists all kinds, because
/// a policy is written from the list.
const LISTED: usize = 20;

/// The time at which a summary is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Time {
    /// The run goes on: the summary covers the run so far.
    SoFar,
    /// The run is over: no process of it is left.
    End,
}

/// Returns the sentence for a run in which no VM was made. Only the file of `--summary` gets the sentence,
/// because a program such as `qemu-system-x86_64 -version` should print nothing more than without msrgate.
pub(super) fn without_vm(policy: &str, at_open_door: AtOpenDoor) -> String {
    let why = match at_open_door {
        AtOpenDoor::Refuse => "no program of the run has got one of KVM",
        AtOpenDoor::LetPass => UNGUARDED,
    };
    format!("msrgate: {policy} guarded no VM: {why}\n")
}

/// The warning in the summary of a run under `--fail-open`.
const UNGUARDED: &str = "under --fail-open, VMs of programs that do not load msrgate's library run without the policy, and are not counted";

/// Returns the sentence for a run whose state page cannot be read at the end. The VMM can write the page,
/// and the guest may have taken control of the VMM.
pub(super) fn without_page(policy: &str, why: &str) -> String {
    format!(
        "msrgate: {policy}: what was refused is not known, as the VMM has damaged the run's state page: {why}. Its guest may be in control of it\n"
    )
}

/// Returns the summary of a run: the refused accesses, and how to allow them. Returns an empty text if the
/// run had no VM.
pub(super) fn text(
    snapshot: &Snapshot,
    compiled: &Compiled,
    policy: &str,
    time: Time,
    at_open_door: AtOpenDoor,
) -> String {
    let guarded = usize::try_from(snapshot.vms_guarded()).unwrap_or(usize::MAX);
    if guarded == 0 {
        return String::new();
    }
    let recorded = snapshot.recorded();
    let (refused, others): (Vec<_>, Vec<_>) = recorded
        .iter()
        .partition(|one| one.first.kind.disposition.is_refusal());
    let is_audit = is_audit(&refused);
    let (silent, refused): (Vec<&Recorded>, Vec<_>) = refused
        .into_iter()
        .partition(|one| is_silent(one, compiled.program()));
    let mut vms = count(guarded, "VM", "VMs");
    if time == Time::SoFar {
        vms += " so far";
    }
    let verb = if is_audit {
        "would have refused"
    } else {
        "refused"
    };
    // Accesses without a place, and those of an audit after the first, may be refusals.
    let at_least = if is_audit || snapshot.others() > 0 {
        "at least "
    } else {
        ""
    };
    let accesses = |all: &[&Recorded]| {
        let sum = if is_audit {
            sum_of_audit(all)
        } else {
            sum(all)
        };
        let sum = usize::try_from(sum).unwrap_or(usize::MAX);
        format!("{at_least}{}", count(sum, "access", "accesses"))
    };
    let mut text = format!("msrgate: {policy} guarded {vms}, and {verb} ");
    text += &match refused.is_empty() {
        false => accesses(&refused),
        true if !silent.is_empty() => "nothing that it logs".to_owned(),
        true if snapshot.others() > 0 => "nothing that is recorded".to_owned(),
        true => "nothing".to_owned(),
    };
    if !silent.is_empty() {
        let silent = accesses(&silent);
        let _ = write!(text, "; in silence it {verb} {silent} (log = \"none\")");
    }
    let is_seen = |one: &&Recorded| one.first.kind.disposition == Disposition::Allowed;
    let (seen, answered): (Vec<&Recorded>, Vec<_>) = others.into_iter().partition(is_seen);
    if !answered.is_empty() {
        let _ = write!(text, "; it answered {} itself", sum(&answered));
    }
    text.push('\n');
    if time == Time::SoFar {
        text.push_str("  the run goes on in the background; to have the summary of its end, name a file by --summary\n");
    }
    if is_audit {
        text.push_str("  an audit counts the first access of each kind in a VM, and lets it and all others through\n");
    }
    let has = |disposition| {
        let mut kinds = recorded.iter().map(|one| one.first.kind);
        kinds.any(|kind| kind.disposition == disposition)
    };
    if has(Disposition::Killed) {
        text.push_str("  `kill` has ended a VMM; what its guest would have accessed after that is not known, and `exec --audit` shows it\n");
    }
    if has(Disposition::WouldKill) {
        text.push_str(
            "  without the audit, the first access marked (kill) would have ended the VMM\n",
        );
    }
    for list in [refused, seen] {
        let listed = if is_audit { list.len() } else { LISTED };
        for one in list.iter().take(listed) {
            let _ = writeln!(text, "  {}", line(one, &list, snapshot, compiled, policy));
        }
        if let Some(more @ 1..) = list.len().checked_sub(listed) {
            let kinds = count(more, "more kind", "more kinds");
            let _ = writeln!(
                text,
                "  and {kinds}; the file of --events has those that its limit of 1,000 events a second lets through"
            );
        }
    }
    if snapshot.others() > 0 {
        let _ = writeln!(
            text,
            "  and {} of kinds that found no place to be recorded",
            snapshot.others()
        );
    }
    if at_open_door == AtOpenDoor::LetPass {
        let _ = writeln!(text, "  {UNGUARDED}");
    }
    text
}

fn is_audit(refused: &[&Recorded]) -> bool {
    let mut dispositions = refused.iter().map(|one| one.first.kind.disposition);
    dispositions.any(|one| matches!(one, Disposition::WouldDeny | Disposition::WouldKill))
}

/// Returns true if the policy says `log = "none"` for these accesses, so that the summary leaves them out.
/// Accesses that ended a VM are never left out.
fn is_silent(one: &Recorded, program: &Program) -> bool {
    let kind = one.first.kind;
    let is_end = matches!(
        kind.disposition,
        Disposition::Killed | Disposition::WouldKill
    );
    let of_unknown = match kind.reason {
        ExitReason::Unknown => program.settings().unknown.log,
        _ => None,
    };
    let mut variants = program.variants().iter();
    let is_none = match of_unknown {
        Some(log) => log == Log::None,
        // The page does not say which variant was in force.
        None => variants.all(|variant| variant.rule(kind.index, kind.access).log == Log::None),
    };
    is_none && !is_end
}

fn sum(all: &[&Recorded]) -> u64 {
    let counts = all.iter().map(|one| one.count);
    counts.fold(0, u64::saturating_add)
}

/// Returns the number of accesses that an audit has let through. An access of an MSR that KVM does not know exits twice
/// if an entry refuses it: for the filter, and for KVM once the filter is open.
fn sum_of_audit(all: &[&Recorded]) -> u64 {
    let mut counts = BTreeMap::new();
    for one in all {
        let kind = one.first.kind;
        let count: &mut u64 = counts.entry((kind.index, kind.access)).or_default();
        *count = one.count.max(*count);
    }
    counts.into_values().fold(0, u64::saturating_add)
}

/// Returns the directions, read or write, in which one line of the policy or the default action has refused
/// this MSR. If it has refused both, one change of the policy can allow both.
fn refused_together(one: &Recorded, all: &[&Recorded]) -> Accesses {
    let is_other = |other: &&Recorded| {
        other.first.kind.index == one.first.kind.index
            && other.first.kind.access != one.first.kind.access
            && other.first.kind.reason == ExitReason::Filter
            && other.first.origin == one.first.origin
    };
    match one.first.kind.access {
        _ if all.iter().any(is_other) => Accesses::Both,
        Access::Read => Accesses::Read,
        Access::Write => Accesses::Write,
    }
}

/// Returns a line such as `8 reads of 0x8b IA32_BIOS_SIGN_ID by deny.toml:4, first by vCPU 0 after 0.31 s;
/// to allow: …`.
fn line(
    one: &Recorded,
    all: &[&Recorded],
    snapshot: &Snapshot,
    compiled: &Compiled,
    policy: &str,
) -> String {
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
        let by = origin(compiled.program(), first.origin, policy);
        let _ = write!(text, ", logged by {by}, {who}{when}");
    } else if kind.reason == ExitReason::Filter {
        let by = origin(compiled.program(), first.origin, policy);
        let kill = match kind.disposition {
            Disposition::Killed | Disposition::WouldKill => " (kill)",
            _ => "",
        };
        let _ = write!(text, " by {by}{kill}, {who}{when}");
        let accesses = refused_together(one, all);
        if let Some(grant) = grant(compiled, first.origin, kind.index, accesses) {
            let _ = write!(text, "; {grant}");
        }
    } else {
        let answer = match kind.access {
            Access::Read => "value",
            Access::Write => "ignore",
        };
        let _ = write!(
            text,
            ", which KVM does not know, {who}{when}; to answer: `{answer}` in an entry for this MSR, or the key `unknown` if no entry names it"
        );
    }
    text
}

/// Returns an event as a line of JSON. The line's field `policy` is the file of the policy's line that
/// decided, or the policy itself if the default action decided.
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

#[cfg(test)]
mod tests {
    use msrgate_filter::MsrIndex;
    use msrgate_policy::{NoIncludes, Source, compile, parse};
    use msrgate_state::Kind;
    use msrgate_testing::page::snapshot_after;

    use super::*;

    fn compiled() -> Compiled {
        let source = Source::new("guest.toml", "policy = 1\ndefault = 'deny'\n");
        let policy = parse(&source, &mut NoIncludes).unwrap();
        compile(policy).unwrap()
    }

    /// Returns the snapshot of a run whose guest has read this many MSRs once each.
    fn after_reads(count: u32) -> Snapshot {
        snapshot_after((0..count).map(|index| Kind {
            index: MsrIndex::new(0x1_0000 + index),
            access: Access::Read,
            disposition: Disposition::Denied,
            reason: ExitReason::Filter,
        }))
    }

    #[test]
    fn summary_says_at_least_if_page_had_no_place_for_some_accesses() {
        let (few, many) = (after_reads(100), after_reads(20_000));
        let headline = |snapshot: &Snapshot| {
            let text = text(
                snapshot,
                &compiled(),
                "guest.toml",
                Time::End,
                AtOpenDoor::Refuse,
            );
            text.lines().next().unwrap().to_owned()
        };
        let begin = "msrgate: guest.toml guarded 1 VM, and refused";
        assert_eq!(headline(&few), format!("{begin} 100 accesses"));
        let recorded = 20_000 - many.others();
        assert!(many.others() > 0);
        assert_eq!(
            headline(&many),
            format!("{begin} at least {recorded} accesses")
        );
    }
}
