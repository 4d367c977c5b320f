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
    #[cfg(test)]
    const ALL: [Self; 9] = [
        Self::SaysNothing,
        Self::DecidesNothing,
        Self::Nameless,
        Self::TooWide,
        Self::Gap,
        Self::PinKexec,
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
            if *segment.action == Action::Allow {
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

#[cfg(test)]
mod tests {
    use msrgate_policy::{NoIncludes, Source, compile, parse};

    use super::*;

    /// The codes of the warnings about a policy, with the lines they are about.
    fn codes(text: &str) -> Vec<(&'static str, Option<u32>)> {
        let source = Source::new("policy.toml", text);
        let policy = parse(&source, &mut NoIncludes).expect("a policy");
        let compiled = compile(policy).expect("a filter");
        let line = |warning: &Warning<'_>| warning.entry.map(|entry| entry.place().line);
        of(&compiled)
            .iter()
            .map(|warning| (warning.code.word(), line(warning)))
            .collect()
    }

    #[test]
    fn every_code_is_in_the_reference() {
        let reference = include_str!("../../../../../docs/policy-reference.md");
        for code in Code::ALL {
            let row = format!("\n| `{}` | ", code.word());
            assert!(reference.contains(&row), "{row}");
        }
    }

    #[test]
    fn every_warning_that_the_policy_alone_gives_rise_to() {
        let text = "policy = 1
default = 'deny'
[msrs]
'0x10..=0x11' = 'r'
0x10 = { read = 'inherit', write = 'inherit' }
'0x30000..=0x30001' = 'r'
'0x174..=0x500' = { read = 'deny', write = 'ignore' }
'0x600..=0x7ff' = 'r'
'0x5000..=0x7fff' = 'none'
IA32_LSTAR = { read = 'allow', write = 'pin' }
IA32_TSC_DEADLINE = 'r'
'0x176..=0x177' = 'r'
0x176 = 'rw'
0x177 = 'w'
";
        assert_eq!(
            codes(text),
            [
                ("says-nothing", Some(5)),
                ("decides-nothing", Some(12)),
                ("nameless", Some(6)),
                ("nameless", Some(9)),
                ("nameless", Some(14)),
                ("gap", Some(11)),
                ("pin-kexec", Some(10)),
                ("state-not-migrated", Some(10)),
            ]
        );
    }

    #[test]
    fn a_range_is_too_wide_if_it_allows_far_more_than_exists() {
        let wide = |key: &str, word: &str| {
            let text = format!(
                "policy = 1\ndefault = 'deny'\naccept = ['tsc-deadline-fastpath']\n[msrs]\n'{key}' = '{word}'"
            );
            codes(&text).contains(&("too-wide", Some(5)))
        };
        // Names end at 0x1983 and begin again at 0x40000000.
        assert!(wide("0x1900..=0x2fff", "r"));
        assert!(wide("0x1900..=0x2fff", "w"));
        assert!(!wide("0x1900..=0x2fff", "none"), "a wide refusal is fine");
        assert!(!wide("0x1900..=0x1a00", "rw"), "some slack is fine");
        assert!(!wide("@mtrr", "rw"));
    }
}
