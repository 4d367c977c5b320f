//! Warnings about state that the gate keeps: pins, which outlive a kernel of the guest, and all state that a
//! migration loses.

use std::collections::{BTreeMap, BTreeSet};

use msrgate_filter::{Access, MsrIndex};
use msrgate_program::{Action, DecidedBy, EntryId, one_line};

use super::warning::{Code, Warning, listed};
use crate::compile::Compiled;
use crate::policy::Mode;
use crate::registers;

/// Returns a warning about pinned registers: the kernel that a guest starts by kexec cannot write
/// them.
pub(super) fn pins(compiled: &Compiled) -> Option<Warning<'_>> {
    let policy = compiled.policy();
    let mut pinned: BTreeMap<MsrIndex, &str> = BTreeMap::new();
    let mut entries: BTreeSet<EntryId> = BTreeSet::new();
    for variant in compiled.variants() {
        for register in registers::all() {
            let segment = variant.rules().at(register.index, Access::Write);
            if let (Action::Pin, DecidedBy::Entry(id)) = (segment.action, segment.by) {
                pinned.insert(register.index, register.name);
                entries.insert(id);
            }
        }
    }
    let entry = policy.entry(*entries.first()?);
    let names = listed(pinned.into_values().map(str::to_owned));
    let message = match policy.settings().mode {
        Mode::Enforce => format!(
            "a second kernel, which the guest starts by kexec, cannot write another value to the pinned registers {names}"
        ),
        Mode::Audit => format!(
            "with `mode = \"enforce\"` a second kernel, which the guest starts by kexec, could not write another value to the pinned registers {names}; an audit records such a write"
        ),
    };
    let help =
        "if the guest does not use kexec, accept this warning; a reset of the VM releases the pins";
    Some(Warning::new(Code::PinKexec, Some(entry), message, help))
}

/// Returns a warning if the policy keeps state in user space, which no VMM migrates by itself.
pub(super) fn state(compiled: &Compiled) -> Option<Warning<'_>> {
    let policy = compiled.policy();
    let rules = compiled.variants().iter().flat_map(|one| one.rules().all());
    let keeping = rules.filter(|(_, rule)| rule.action.keeps_state());
    let entries: BTreeSet<EntryId> = keeping
        .filter_map(|(_, rule)| match rule.by {
            DecidedBy::Entry(id) => Some(id),
            DecidedBy::Default | DecidedBy::Kvm => None,
        })
        .collect();
    let first = policy.entry(*entries.first()?);
    let keys = entries.iter().map(|id| policy.entry(*id).key());
    let keys = listed(keys.map(|key| format!("`{}`", one_line(key))));
    let message =
        format!("the state of {keys} is lost when a VM is migrated, unless the VMM saves it");
    let help = "have the VMM save this state, or accept the loss";
    Some(Warning::new(
        Code::StateNotMigrated,
        Some(first),
        message,
        help,
    ))
}
