//! What is no mistake, and worth knowing.

use std::collections::HashSet;

use msrgate_filter::Access;
use msrgate_policy::registers;
use msrgate_policy::{Action, Compiled, Entry, EntryId, MsrRange, Said, Variant, one_line};

use crate::output;

/// One warning.
pub(super) struct Warning<'c> {
    pub(super) code: Code,
    /// The entry it is about; `None` is the policy as a whole.
    pub(super) entry: Option<&'c Entry>,
    pub(super) message: String,
    /// What it is about, piece by piece.
    pub(super) details: Vec<String>,
    pub(super) help: String,
}

/// What kind of warning it is, for programs: words that stay as they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Code {
    SaysNothing,
    DecidesNothing,
    Nameless,
    TooWide,
    Gap,
    PinKexec,
    StateNotMigrated,
    CpuidRefused,
    NotSaved,
}

impl Code {
    pub(super) const fn word(self) -> &'static str {
        match self {
            Self::SaysNothing => "says-nothing",
            Self::DecidesNothing => "decides-nothing",
            Self::Nameless => "nameless",
            Self::TooWide => "too-wide",
            Self::Gap => "gap",
            Self::PinKexec => "pin-kexec",
            Self::StateNotMigrated => "state-not-migrated",
            Self::CpuidRefused => "cpuid-refused",
            Self::NotSaved => "not-saved",
        }
    }

    /// What is said once of all warnings of a kind that entry after entry may have, in place of the
    /// message of each.
    pub(super) const fn heading(self) -> Option<&'static str> {
        match self {
            Self::CpuidRefused => {
                Some("this is refused, and the CPUID of this host's guests says that it is there")
            }
            Self::NotSaved => Some(
                "a guest may write this, and KVM_GET_MSR_INDEX_LIST of this host does not name it: a migration may lose it",
            ),
            _ => None,
        }
    }
}

/// The warnings that depend on the policy alone.
pub(super) fn of(compiled: &Compiled) -> Vec<Warning<'_>> {
    let mut warnings = without_effect(compiled);
    warnings.extend(nameless(compiled));
    warnings.extend(too_wide(compiled));
    warnings.extend(gaps(compiled));
    warnings.extend(pins(compiled));
    warnings.extend(state(compiled));
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
        if Access::ALL
            .iter()
            .all(|&access| entry.action(access).is_none())
        {
            return Warning {
                code: Code::SaysNothing,
                details: Vec::new(),
                entry: Some(entry),
                message: format!(
                    "`{}` says nothing: it inherits both directions",
                    one_line(entry.key())
                ),
                help: "delete it".to_owned(),
            };
        }
        Warning {
            code: Code::DecidesNothing,
            details: Vec::new(),
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
            code: Code::Nameless,
            details: Vec::new(),
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

/// Ranges that let a guest at far more than there is: from the first register with a name to the last
/// would do.
fn too_wide(compiled: &Compiled) -> impl Iterator<Item = Warning<'_>> {
    /// As many MSRs without a name before the first, or after the last, are no slip.
    const SLACK: u64 = 0x100;
    let entries = compiled.policy().entries().iter();
    entries.filter_map(|entry| {
        let allows = |&access: &Access| entry.action(access) == Some(&Action::Allow);
        let range = entry.msrs().as_range().filter(|_| Access::ALL.iter().any(allows))?;
        let all = registers::all();
        let from = all.partition_point(|register| register.index < range.first());
        let to = all.partition_point(|register| register.index <= range.last());
        let named = all.get(from..to)?;
        let (first, last) = (named.first()?.index, named.last()?.index);
        let within = MsrRange::new(first, last)?;
        let outside = [
            u64::from(first.get() - range.first().get()),
            u64::from(range.last().get() - last.get()),
        ];
        outside.iter().any(|&count| count > SLACK).then(|| Warning {
            code: Code::TooWide,
            details: Vec::new(),
            entry: Some(entry),
            message: format!(
                "`{}` is wider than anything that exists: of its {} MSRs those with a name lie in {within}",
                one_line(entry.key()),
                range.count(),
            ),
            help: format!("write `\"{within}\"`"),
        })
    })
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
                    code: Code::Gap,
                    details: Vec::new(),
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
        code: Code::PinKexec,
        details: Vec::new(),
        entry: Some(entry),
        message: "a guest that starts another kernel by kexec cannot write pinned registers again"
            .to_owned(),
        help: "that is what a pin is for; a reset of the VM releases it".to_owned(),
    })
}

/// State that user space keeps is in no VMM's migration stream.
fn state(compiled: &Compiled) -> Option<Warning<'_>> {
    let policy = compiled.policy();
    let mut accepted = policy.settings().accept.iter();
    if accepted.any(|word| **word == *"state-not-migrated") {
        return None;
    }
    let keeps = |entry: &&Entry| {
        let mut actions = Access::ALL
            .into_iter()
            .filter_map(|access| entry.action(access));
        actions.any(Action::keeps_state)
    };
    let entry = policy.entries().iter().find(keeps)?;
    Some(Warning {
        code: Code::StateNotMigrated,
        details: Vec::new(),
        entry: Some(entry),
        message: format!(
            "what `{}` keeps is lost when a VM is migrated, unless the VMM saves it",
            one_line(entry.key())
        ),
        help: "if that is known and fine, write `accept = [\"state-not-migrated\"]`".to_owned(),
    })
}
