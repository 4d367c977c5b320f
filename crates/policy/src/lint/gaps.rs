//! Warnings about accesses and instructions that bypass a policy.

use std::collections::{BTreeMap, BTreeSet};

use msrgate_filter::{Access, MsrIndex};
use msrgate_program::{Action, DecidedBy, EntryId};

use super::warning::{Code, Warning, once};
use crate::compile::Compiled;
use crate::policy::Mode;
use crate::registers::{self, Gap, GapKind};

/// Returns warnings about accesses that a policy refuses or answers, but that bypass the policy.
pub(super) fn gaps(compiled: &Compiled) -> Vec<Warning<'_>> {
    let policy = compiled.policy();
    let mut warnings = Vec::new();
    for variant in compiled.variants() {
        let registers = registers::all().iter();
        for (register, access) in registers.flat_map(|one| Access::ALL.map(|access| (one, access)))
        {
            let segment = variant.rules().at(register.index, access);
            if *segment.action == Action::Allow {
                continue;
            }
            let entry = match segment.by {
                DecidedBy::Entry(id) => Some(policy.entry(id)),
                DecidedBy::Default | DecidedBy::Kvm => None,
            };
            let gaps = registers::reach(register.index, access).gaps().iter();
            let is_audited = policy.settings().mode == Mode::Audit && segment.action.refuses();
            let bypass = if is_audited {
                "can go unrecorded in the audit of"
            } else {
                "can bypass"
            };
            for gap in gaps {
                let message = format!(
                    "{access}s of {} {bypass} `{}`: {}",
                    registers::titled(register.index),
                    segment.action.word(),
                    gap.why
                );
                let help = format!("to accept this gap, {}", accept(gap));
                warnings.push(Warning {
                    accept: gap.name,
                    ..Warning::new(Code::Gap, entry, message, help)
                });
            }
        }
    }
    once(warnings)
}

fn accept(gap: &Gap) -> String {
    format!("write `accept = [\"{}\"]`", gap.name)
}

/// Registers that a policy pins, masks or makes sticky, and that an instruction other than WRMSR
/// can change through one gap.
struct Held {
    gap: &'static Gap,
    /// The first entry that pins, masks or makes sticky some of the registers.
    first: EntryId,
    /// The words of the actions by which the policy holds the registers, such as `pin`.
    words: BTreeSet<&'static str>,
    names: BTreeMap<MsrIndex, &'static str>,
}

/// Returns a warning for each gap through which instructions other than WRMSR write pinned, masked
/// or sticky registers.
pub(super) fn changed_unasked(compiled: &Compiled) -> Vec<Warning<'_>> {
    let policy = compiled.policy();
    let mut found: BTreeMap<_, Held> = BTreeMap::new();
    for variant in compiled.variants() {
        for register in registers::all() {
            let segment = variant.rules().at(register.index, Access::Write);
            let DecidedBy::Entry(id) = segment.by else {
                continue;
            };
            if !segment.action.needs_forwarding() {
                continue;
            }
            let changes = register.uses().filter(|gap| gap.kind == GapKind::Change);
            for gap in changes {
                let held = found.entry(gap.name).or_insert_with(|| Held {
                    gap,
                    first: id,
                    words: BTreeSet::new(),
                    names: BTreeMap::new(),
                });
                held.first = held.first.min(id);
                held.words.insert(segment.action.word());
                held.names.insert(register.index, register.name);
            }
        }
    }
    found
        .into_values()
        .map(|held| {
            let (entry, message) = (policy.entry(held.first), held.message());
            Warning {
                accept: held.gap.name,
                ..Warning::new(Code::ChangedUnasked, Some(entry), message, held.help())
            }
        })
        .collect()
}

impl Held {
    fn message(&self) -> String {
        let words: Vec<_> = self.words.iter().map(|word| format!("`{word}`")).collect();
        let names: Vec<_> = self.names.values().copied().collect();
        let apply = if words.len() == 1 { "applies" } else { "apply" };
        let (words, names) = (words.join(", "), names.join(", "));
        format!("{words} of {names} {apply} to WRMSR only: {}", self.gap.why)
    }

    fn help(&self) -> String {
        let accept = accept(self.gap);
        match self.gap.needs {
            Some(needs) => {
                format!("hide {needs} from the guest, or accept the gap; in both cases, {accept}")
            }
            None => format!("allow the write; to accept the gap, {accept}"),
        }
    }
}
