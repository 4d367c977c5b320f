//! Impossible entries: overrides that replace nothing, and actions that a register does not
//! support.

use msrgate_filter::{Access, MsrIndex};
use msrgate_program::{Action, DecidedBy, Rule};

use crate::mistake::{Label, Mistake, MistakeKind};
use crate::overrides::Overrides;
use crate::policy::{Entry, Log, Policy, Replaces};
use crate::registers;
use crate::source::quoted;

/// Returns mistakes for overrides that replace nothing, and for devices that are not set up.
pub(super) fn without_effect(policy: &Policy) -> Vec<Mistake> {
    let overrides = Overrides::of(policy);
    let mut mistakes = Vec::new();
    for id in policy.ids() {
        let entry = policy.entry(id);
        if entry.replaces == Replaces::Included && overrides.effect(id).is_none() {
            mistakes.push(entry_mistake(
                entry,
                MistakeKind::OverridesNothing(quoted(&entry.key)),
            ));
        }
        let device = Access::ALL
            .into_iter()
            .find_map(|access| match entry.action(access) {
                Some(Action::Device(device)) => Some(device),
                _ => None,
            });
        if let (Some(device), None) = (device, policy.settings.microcode) {
            let (key, device) = (quoted(&entry.key), device.to_string());
            mistakes.push(entry_mistake(
                entry,
                MistakeKind::DeviceNotSetUp { key, device },
            ));
        }
    }
    mistakes
}

fn entry_mistake(entry: &Entry, kind: MistakeKind) -> Mistake {
    Mistake {
        kind,
        places: vec![Label::bare(entry.at)],
    }
}

/// Returns a mistake if a rule makes the gate forward accesses of an MSR for which forwarding is
/// not known to be safe.
pub(super) fn unsound(policy: &Policy, segment: Rule<'_>, access: Access) -> Option<Mistake> {
    let DecidedBy::Entry(id) = segment.by else {
        return None;
    };
    let entry = policy.entry(id);
    let log = entry.log.unwrap_or(policy.settings.log);
    let is_logged = log == Log::All && *segment.action == Action::Allow;
    if !segment.action.needs_forwarding() && !is_logged {
        return None;
    }
    let forwardable = |index: u32| {
        let register = registers::by_index(MsrIndex::new(index));
        register.is_some_and(|register| register.forward().is_some())
    };
    let range = segment.msrs.first().get()..=segment.msrs.last().get();
    let index = MsrIndex::new(range.into_iter().find(|&index| !forwardable(index))?);
    let name = registers::by_index(index).map_or(String::new(), |one| format!(" ({})", one.name));
    let msr = format!("{index}{name}");
    let kind = if segment.action.needs_forwarding() {
        let word = segment.action.word();
        MistakeKind::NotForwardable { word, msr }
    } else {
        MistakeKind::NotLoggable { access, msr }
    };
    Some(entry_mistake(entry, kind))
}

/// Returns a mistake if MSR 0xffffffff gets another action than the default (S3.5).
pub(super) fn at_the_top(policy: &Policy, last: Rule<'_>) -> Option<Mistake> {
    match last.by {
        DecidedBy::Entry(id) if *last.action != policy.settings.default => {
            let entry = policy.entry(id);
            Some(entry_mistake(
                entry,
                MistakeKind::NamesTheLastMsr(quoted(&entry.key)),
            ))
        }
        _ => None,
    }
}
