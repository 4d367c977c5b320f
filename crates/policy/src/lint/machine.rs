//! The effects of a policy on a machine: the registers that CPUID offers and the policy refuses,
//! and the writes that a migration loses.

use std::collections::BTreeMap;

use msrgate_filter::{Access, Accesses, MsrIndex};
use msrgate_program::{Action, CpuidBit, DecidedBy, EntryId, Variant};

use crate::effects::write_effect;
use crate::registers::{self, Feature};

/// The registers of a CPUID feature that one part of a policy refuses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct RefusedFeature {
    /// The CPUID feature to which the registers belong.
    pub(super) feature: &'static Feature,
    /// The part of the policy that refuses the registers: an entry or the default.
    pub(super) by: DecidedBy,
    /// The result of a refused access for the guest.
    pub(super) ending: Ending,
    /// The registers with the refused accesses, each once, sorted by index.
    pub(super) msrs: Vec<(MsrIndex, Accesses)>,
}

/// The result of a refused access for the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Ending {
    /// The guest gets #GP.
    Fault,
    /// The VM ends, or the call that the guest is serving.
    Kill,
}

/// Returns the refused registers of the CPUID features whose bits `is_set` reports as set, grouped
/// by feature.
pub(super) fn refused_features(
    variant: &Variant,
    is_set: impl Fn(&CpuidBit) -> bool,
) -> Vec<RefusedFeature> {
    let offered = registers::features().iter();
    offered
        .filter(|feature| is_set(&feature.bit))
        .flat_map(|feature| refused(variant, feature))
        .collect()
}

/// Returns the refused registers of one feature, one item for each part of the policy that refuses
/// some.
fn refused(variant: &Variant, feature: &'static Feature) -> Vec<RefusedFeature> {
    let mut by_said: Vec<((DecidedBy, Ending), BTreeMap<MsrIndex, Accesses>)> = Vec::new();
    for access in Access::ALL {
        for index in feature.msrs(access) {
            let segment = variant.rules().at(index, access);
            if !segment.action.refuses() {
                continue;
            }
            let ending = match segment.action {
                Action::Kill => Ending::Kill,
                _ => Ending::Fault,
            };
            let said = (segment.by, ending);
            let place = by_said.iter().position(|(other, _)| *other == said);
            let place = place.unwrap_or_else(|| {
                by_said.push((said, BTreeMap::new()));
                by_said.len() - 1
            });
            let only = match access {
                Access::Read => Accesses::Read,
                Access::Write => Accesses::Write,
            };
            let msrs = &mut by_said[place].1;
            msrs.entry(index)
                .and_modify(|accesses| *accesses = Accesses::Both)
                .or_insert(only);
        }
    }
    let refused = by_said
        .into_iter()
        .map(|((by, ending), msrs)| RefusedFeature {
            feature,
            by,
            ending,
            msrs: msrs.into_iter().collect(),
        });
    refused.collect()
}

/// Registers that an entry lets a guest change, and that are lost when the VM is saved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct UnsavedWrites {
    /// The entry that lets the guest write the registers.
    pub(super) entry: EntryId,
    /// The registers, the worst loss first, then by index; at least one.
    pub(super) msrs: Vec<(Loss, MsrIndex)>,
}

/// The consequence for the guest if a register loses its value. The worst comes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Loss {
    /// A protection is off, or the guest goes on at a wrong place: the register controls speculation or shadow
    /// stacks, or says where system calls enter the kernel, or which memory FS and GS are about.
    Protection,
    /// The guest runs with another setting than it has chosen.
    Setting,
    /// A count or a record is lost: the register is about machine checks, performance counters or power.
    Record,
}

impl Loss {
    fn of(index: MsrIndex) -> Self {
        let is_in = |names: &[&str]| {
            let mut groups = registers::groups().iter();
            groups.any(|group| names.contains(&group.name) && group.contains(index))
        };
        if is_in(&["@speculation", "@cet", "@syscall", "@segment"]) {
            Self::Protection
        } else if is_in(&["@mce", "@pmu", "@power"]) {
            Self::Record
        } else {
            Self::Setting
        }
    }
}

/// The registers in `KVM_GET_SREGS`: `apic_base`, `efer`, and the bases of `fs` and `gs` (Linux,
/// Documentation/virt/kvm/api.rst).
const IN_SREGS: [u32; 4] = [0x1b, 0xc000_0080, 0xc000_0100, 0xc000_0101];

/// Returns the named registers that entries let a guest write and that are lost when the VM is
/// saved, grouped by entry; the entry with the worst loss comes first. Registers in `KVM_GET_SREGS` are left
/// out, and so are registers whose write is a command and leaves nothing to save. `lost` returns those of
/// the given registers that a guest can change and a VMM does not save.
pub(super) fn unsaved_writes(
    variant: &Variant,
    lost: impl FnOnce(Vec<MsrIndex>) -> Vec<MsrIndex>,
) -> Vec<UnsavedWrites> {
    let mut written: BTreeMap<MsrIndex, EntryId> = BTreeMap::new();
    for register in registers::all() {
        let index = register.index;
        let segment = variant.rules().at(index, Access::Write);
        let reaches = *segment.action == Action::Allow || segment.action.needs_forwarding();
        let DecidedBy::Entry(entry) = segment.by else {
            continue;
        };
        let is_kept = IN_SREGS.contains(&index.get()) || write_effect(index).is_some();
        if reaches && !is_kept {
            written.insert(index, entry);
        }
    }
    let mut by_entry: BTreeMap<EntryId, Vec<(Loss, MsrIndex)>> = BTreeMap::new();
    for index in lost(written.keys().copied().collect()) {
        if let Some(entry) = written.get(&index) {
            let msrs = by_entry.entry(*entry).or_default();
            msrs.push((Loss::of(index), index));
        }
    }
    let mut unsaved: Vec<_> = by_entry
        .into_iter()
        .map(|(entry, mut msrs)| {
            msrs.sort_unstable();
            UnsavedWrites { entry, msrs }
        })
        .collect();
    unsaved.sort_by_key(|one| one.msrs.first().map(|(loss, _)| *loss));
    unsaved
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Compiled, NoIncludes, Source, compile, parse};

    fn compiled(text: &str) -> Compiled {
        let source = Source::new("policy.toml", text);
        compile(parse(&source, &mut NoIncludes).unwrap()).unwrap()
    }

    #[test]
    fn refused_registers_of_cpuid_features_are_found_for_each_entry() {
        let compiled = compiled(
            "policy = 1\ndefault = 'deny'\n[msrs]\nIA32_SPEC_CTRL = 'r'\nIA32_PRED_CMD = 'w'\nIA32_TSC_ADJUST = { read = { value = 0 }, write = 'kill' }\nIA32_ARCH_CAPABILITIES = 'r'",
        );
        let on = ["SPEC_CTRL", "TSC_ADJUST", "ARCH_CAPABILITIES", "XSAVES"];
        let found = refused_features(&compiled.variants()[0], |bit| on.contains(&bit.feature));
        let shown: Vec<_> = found
            .iter()
            .map(|one| {
                let by = match one.by {
                    DecidedBy::Entry(id) => compiled.policy().entry(id).key(),
                    DecidedBy::Default | DecidedBy::Kvm => "default",
                };
                let msrs = one
                    .msrs
                    .iter()
                    .map(|(index, refused)| format!(" {index} {refused}"));
                format!(
                    "{} by {by}:{} {:?}",
                    one.feature.bit.feature,
                    msrs.collect::<String>(),
                    one.ending,
                )
            })
            .collect();
        assert_eq!(
            shown,
            [
                "TSC_ADJUST by IA32_TSC_ADJUST: 0x3b w Kill",
                "SPEC_CTRL by IA32_SPEC_CTRL: 0x48 w Fault",
                "XSAVES by default: 0xda0 rw Fault",
            ]
        );
    }

    #[test]
    fn unsaved_writes_come_worst_first() {
        let compiled = compiled(
            "policy = 1\ndefault = 'deny'\n[msrs]\n'@mce' = 'rw'\nIA32_MTRR_DEF_TYPE = 'rw'\nIA32_TSX_CTRL = 'rw'\n'0x175..=0x177' = 'rw'",
        );
        let lost = [0x122, 0x176, 0x17a, 0x2ff, 0x400].map(MsrIndex::new);
        let found = unsaved_writes(&compiled.variants()[0], |_| lost.into());
        let shown: Vec<_> = found
            .iter()
            .map(|one| {
                format!(
                    "{}: {:?}",
                    compiled.policy().entry(one.entry).key(),
                    one.msrs
                )
            })
            .collect();
        let expected = [
            "IA32_TSX_CTRL: [(Protection, 0x122)]",
            "0x175..=0x177: [(Protection, 0x176)]",
            "IA32_MTRR_DEF_TYPE: [(Setting, 0x2ff)]",
            "@mce: [(Record, 0x17a), (Record, 0x400)]",
        ];
        assert_eq!(shown, expected);
    }

    #[test]
    fn writable_registers_that_migration_loses_are_found_for_each_entry() {
        let compiled = compiled(
            "policy = 1\ndefault = 'allow'\n[msrs]\n'0x174..=0x176' = 'rw'\nIA32_EFER = 'rw'\nIA32_PRED_CMD = 'w'\n'@mtrr' = 'r'\nIA32_LSTAR = { read = 'allow', write = 'pin' }\nIA32_PLATFORM_ID = { read = 'allow', write = 'ignore' }",
        );
        let found = unsaved_writes(&compiled.variants()[0], |all| {
            let lost = all.into_iter().filter(|index| index.get() != 0x175);
            lost.collect()
        });
        let shown: Vec<_> = found
            .iter()
            .map(|one| {
                let msrs = one.msrs.iter().map(|(_, index)| index.to_string());
                let msrs: Vec<_> = msrs.collect();
                format!(
                    "{}: {}",
                    compiled.policy().entry(one.entry).key(),
                    msrs.join(" ")
                )
            })
            .collect();
        assert_eq!(
            shown,
            ["0x174..=0x176: 0x174 0x176", "IA32_LSTAR: 0xc0000082"]
        );
    }
}
