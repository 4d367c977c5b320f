//! What is no mistake, and worth knowing.

use std::collections::HashSet;

use msrgate_filter::Access;
use msrgate_policy::registers;
use msrgate_policy::{Action, Compiled, Entry, EntryId, Said, Variant, one_line};

use crate::output;

/// One warning.
pub(super) struct Warning<'c> {
    /// The entry it is about; `None` is the policy as a whole.
    pub(super) entry: Option<&'c Entry>,
    pub(super) message: String,
    pub(super) help: String,
}

/// All warnings about a policy.
pub(super) fn of(compiled: &Compiled) -> Vec<Warning<'_>> {
    let mut warnings = without_effect(compiled);
    warnings.extend(nameless(compiled));
    warnings.extend(gaps(compiled));
    warnings.extend(pins(compiled));
    warnings
}

/// Entries that decide no access on any processor.
fn without_effect(compiled: &Compiled) -> Vec<Warning<'_>> {
    let tables = compiled.variants().iter().map(Variant::table);
    let segments = tables.flat_map(|table| Access::ALL.map(|access| table.segments(access)));
    let effective: HashSet<EntryId> = segments
        .flatten()
        .filter_map(|segment| match segment.said {
            Said::ByEntry(id) => Some(id),
            Said::ByDefault | Said::ByKvm => None,
        })
        .collect();
    let policy = compiled.policy();
    // What an include says beyond the policy's own need is no mistake of the policy.
    let is_own =
        |id: &EntryId| policy.text(policy.entry(*id).source()).name() == policy.source().name();
    let idle = policy
        .ids()
        .filter(|id| !effective.contains(id) && is_own(id));
    idle.map(|id| {
        let entry = policy.entry(id);
        Warning {
            entry: Some(entry),
            message: format!(
                "`{}` decides nothing: other entries decide all of its MSRs",
                one_line(entry.key())
            ),
            help: "delete it, or the entries within it".to_owned(),
        }
    })
    .collect()
}

/// Entries that speak of no register that anybody has named.
fn nameless(compiled: &Compiled) -> Vec<Warning<'_>> {
    let is_named = |entry: &&Entry| {
        let mut ranges = entry.msrs().ranges().iter();
        ranges.any(|range| {
            let all = registers::all();
            let from = all.partition_point(|register| register.index < range.first());
            all.get(from)
                .is_some_and(|register| range.contains(register.index))
        })
    };
    let nameless = compiled
        .policy()
        .entries()
        .iter()
        .filter(|entry| !is_named(entry));
    nameless
        .map(|entry| Warning {
            entry: Some(entry),
            message: format!(
                "no source that msrgate knows names a register of `{}`",
                one_line(entry.key())
            ),
            help: "look the index up again; `msrgate msr` finds registers by name and number"
                .to_owned(),
        })
        .collect()
}

/// Refusals that some accesses get around.
fn gaps(compiled: &Compiled) -> Vec<Warning<'_>> {
    let policy = compiled.policy();
    let accepted = |gap: &str| policy.settings().accept.iter().any(|word| **word == *gap);
    let mut warnings = Vec::new();
    for variant in compiled.variants() {
        let registers = registers::all().iter();
        for (register, access) in registers.flat_map(|one| Access::ALL.map(|access| (one, access)))
        {
            let segment = variant.table().at(register.index, access);
            if segment.action == Action::Allow {
                continue;
            }
            let entry = match segment.said {
                Said::ByEntry(id) => Some(policy.entry(id)),
                Said::ByDefault | Said::ByKvm => None,
            };
            let gaps = registers::reach(register.index, access).gaps().iter();
            for gap in gaps.filter(|gap| !accepted(gap.name)) {
                let message = format!(
                    "a {access} of {} is not always {}: {}",
                    output::titled(register.index),
                    segment.action.word(),
                    gap.why
                );
                let help = format!(
                    "if that is known and fine, write `accept = [\"{}\"]`",
                    gap.name
                );
                warnings.push(Warning {
                    entry,
                    message,
                    help,
                });
            }
        }
    }
    let mut seen = HashSet::new();
    warnings.retain(|warning| seen.insert(warning.message.clone()));
    warnings
}

/// A pinned register does not take what a second kernel writes.
fn pins(compiled: &Compiled) -> Option<Warning<'_>> {
    let pins = |entry: &&Entry| entry.action(Access::Write) == Some(&Action::Pin);
    let entry = compiled.policy().entries().iter().find(pins)?;
    Some(Warning {
        entry: Some(entry),
        message: "a guest that starts another kernel by kexec cannot write pinned registers again"
            .to_owned(),
        help: "that is what a pin is for; a reset of the VM releases it".to_owned(),
    })
}
