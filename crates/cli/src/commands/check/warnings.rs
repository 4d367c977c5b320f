//! What is no mistake, and worth knowing.

mod punctured;

use std::collections::{BTreeMap, BTreeSet, HashSet};

use msrgate_filter::{Access, MsrIndex};
use msrgate_policy::answer::{SIGN_ID, is_cleared_first};
use msrgate_policy::registers::{self, Gap, GapKind};
use msrgate_policy::{
    Action, Compiled, DecidedBy, Device, Entry, EntryId, MsrRange, Policy, Variant, one_line,
};

use crate::output;
use punctured::punctured;

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
    Punctured,
    Gap,
    PinKexec,
    ChangedUnasked,
    RevisionUnread,
    StateNotMigrated,
    CpuidRefused,
    NotSaved,
}

impl Code {
    #[cfg(test)]
    const ALL: [Self; 12] = [
        Self::SaysNothing,
        Self::DecidesNothing,
        Self::Nameless,
        Self::TooWide,
        Self::Punctured,
        Self::Gap,
        Self::PinKexec,
        Self::ChangedUnasked,
        Self::RevisionUnread,
        Self::StateNotMigrated,
        Self::CpuidRefused,
        Self::NotSaved,
    ];

    pub(super) const fn word(self) -> &'static str {
        match self {
            Self::SaysNothing => "says-nothing",
            Self::DecidesNothing => "decides-nothing",
            Self::Nameless => "nameless",
            Self::TooWide => "too-wide",
            Self::Punctured => "punctured",
            Self::Gap => "gap",
            Self::PinKexec => "pin-kexec",
            Self::ChangedUnasked => "changed-unasked",
            Self::RevisionUnread => "revision-unread",
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
    warnings.extend(punctured(compiled));
    warnings.extend(gaps(compiled));
    warnings.extend(pins(compiled));
    warnings.extend(changed_unasked(compiled));
    warnings.extend(revision_unread(compiled));
    warnings.extend(state(compiled));
    warnings
}

/// Entries that decide no access on any processor.
fn without_effect(compiled: &Compiled) -> Vec<Warning<'_>> {
    let tables = compiled.variants().iter().map(Variant::rules);
    let segments = tables.flat_map(|table| Access::ALL.map(|access| table.of(access)));
    let effective: HashSet<EntryId> = segments
        .flatten()
        .filter_map(|segment| match segment.by {
            DecidedBy::Entry(id) => Some(id),
            DecidedBy::Default | DecidedBy::Kvm => None,
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
            for gap in gaps.filter(|gap| !is_accepted(policy, gap.name)) {
                warnings.push(Warning {
                    code: Code::Gap,
                    details: Vec::new(),
                    entry,
                    message: format!(
                        "a {access} of {} is not always {}: {}",
                        output::titled(register.index),
                        segment.action.word(),
                        gap.why
                    ),
                    help: format!("if that is known and fine, {}", accept(gap)),
                });
            }
        }
    }
    once(warnings)
}

/// Each once, however many processors it is about.
fn once(mut warnings: Vec<Warning<'_>>) -> Vec<Warning<'_>> {
    let mut seen = HashSet::new();
    warnings.retain(|warning| seen.insert(warning.message.clone()));
    warnings
}

fn is_accepted(policy: &Policy, gap: &str) -> bool {
    let mut accepted = policy.settings().accept.iter();
    accepted.any(|word| **word == *gap)
}

fn accept(gap: &Gap) -> String {
    format!("write `accept = [\"{}\"]`", gap.name)
}

/// A pinned register does not take what a second kernel writes.
fn pins(compiled: &Compiled) -> impl Iterator<Item = Warning<'_>> {
    let pins = |entry: &&Entry| entry.action(Access::Write) == Some(&Action::Pin);
    let entries = compiled.policy().entries().iter().filter(pins);
    entries.map(|entry| Warning {
        code: Code::PinKexec,
        details: Vec::new(),
        entry: Some(entry),
        message: format!(
            "a guest that starts another kernel by kexec cannot write `{}` again, which is pinned",
            one_line(entry.key())
        ),
        help: "that is what a pin is for; a reset of the VM releases it".to_owned(),
    })
}

/// What a policy is to hold, and one gap changes.
struct Held {
    gap: &'static Gap,
    /// The first entry that has some of it.
    first: EntryId,
    /// By which actions.
    words: BTreeSet<&'static str>,
    names: BTreeMap<MsrIndex, &'static str>,
}

/// What is pinned, masked or sticky, and other instructions write: a warning for each way to do so.
fn changed_unasked(compiled: &Compiled) -> Vec<Warning<'_>> {
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
            for gap in changes.filter(|gap| !is_accepted(policy, gap.name)) {
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
        .map(|held| Warning {
            code: Code::ChangedUnasked,
            details: Vec::new(),
            entry: Some(policy.entry(held.first)),
            message: held.message(),
            help: held.help(),
        })
        .collect()
}

impl Held {
    fn message(&self) -> String {
        let words: Vec<_> = self.words.iter().map(|word| format!("`{word}`")).collect();
        let names: Vec<_> = self.names.values().copied().collect();
        let stop = if words.len() == 1 { "stops" } else { "stop" };
        let (words, names) = (words.join(", "), names.join(", "));
        format!("{words} of {names} {stop} WRMSR alone: {}", self.gap.why)
    }

    fn help(&self) -> String {
        let known = format!("this is known and fine, {}", accept(self.gap));
        match self.gap.needs {
            Some(needs) => format!("hide {needs} from the guest; where it is hidden, or {known}"),
            None => format!("allow the write, which has other ways; if {known}"),
        }
    }
}

/// A microcode device whose revision the guest has no way to see.
fn revision_unread(compiled: &Compiled) -> Vec<Warning<'_>> {
    let policy = compiled.policy();
    let mut warnings = Vec::new();
    for variant in compiled.variants() {
        let at = |index, access| variant.rules().at(index, access);
        for register in registers::all() {
            let segment = at(register.index, Access::Write);
            let (Action::Device(Device::Microcode), DecidedBy::Entry(id)) =
                (segment.action, segment.by)
            else {
                continue;
            };
            let [read, write] = Access::ALL.map(|access| at(SIGN_ID, access).action);
            let (access, action) = match (read, write) {
                (Action::Allow | Action::Handler(_), write)
                    if write.refuses() && is_cleared_first(register.index) =>
                {
                    (Access::Write, write)
                }
                (Action::Allow | Action::Handler(_), _) => continue,
                (read, _) => (Access::Read, read),
            };
            let entry = policy.entry(id);
            warnings.push(Warning {
                code: Code::RevisionUnread,
                details: Vec::new(),
                entry: Some(entry),
                message: format!(
                    "a guest cannot look up the revision of the device of `{}`: a {access} of {} is {action}",
                    one_line(entry.key()),
                    output::titled(SIGN_ID),
                ),
                help: "write `IA32_BIOS_SIGN_ID = \"rw\"`: a guest writes 0, executes CPUID, and reads it there"
                    .to_owned(),
            });
        }
    }
    once(warnings)
}

/// State that user space keeps is in no VMM's migration stream.
fn state(compiled: &Compiled) -> Option<Warning<'_>> {
    let policy = compiled.policy();
    if is_accepted(policy, "state-not-migrated") {
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

#[cfg(test)]
mod tests;
