//! Warnings that depend on a host: on its CPUID, and on the registers that its KVM saves.

use std::collections::BTreeMap;

use msrgate_filter::MsrIndex;
use msrgate_program::{Cpu, CpuidBit, DecidedBy, EntryId, MsrRange, MsrSet, one_line};

use super::machine::{RefusedFeature, refused_features, unsaved_writes};
use super::warning::{Code, Warning};
use crate::compile::Compiled;
use crate::policy::Entry;
use crate::registers;

/// Returns warnings about registers that CPUID offers and the policy refuses: one for each entry,
/// and one for the default.
pub fn of_cpuid<'c>(
    compiled: &'c Compiled,
    cpu: Option<&Cpu>,
    is_set: impl Fn(&CpuidBit) -> bool,
) -> Vec<Warning<'c>> {
    let mut by_entry: BTreeMap<Option<EntryId>, Vec<String>> = BTreeMap::new();
    for refused in refused_features(compiled.on(cpu), is_set) {
        let entry = match refused.by {
            DecidedBy::Entry(id) => Some(id),
            DecidedBy::Default | DecidedBy::Kvm => None,
        };
        by_entry.entry(entry).or_default().push(line(&refused));
    }
    let warning = |(id, details): (Option<EntryId>, Vec<String>)| {
        let entry = id.map(|id| compiled.policy().entry(id));
        let key = entry.map_or("default".to_owned(), |entry| one_line(entry.key()));
        Warning {
            code: Code::CpuidRefused,
            entry,
            message: format!("`{key}` refuses registers that CPUID offers to guests on this host"),
            details,
            help: "allow these registers, or clear these bits in the CPUID that the VMM gives its guest; a guest that relies on such a bit gets #GP"
                .to_owned(),
        }
    };
    by_entry.into_iter().map(warning).collect()
}

/// Returns a line such as `XSAVES (CPUID 0xd.1 EAX bit 3): rw 0xda0 IA32_XSS`.
fn line(refused: &RefusedFeature) -> String {
    let same = refused.msrs.chunk_by(|one, next| one.1 == next.1);
    let msrs = same.flat_map(|same| {
        let accesses = same.first().map(|one| one.1);
        let ranges = in_ranges(same.iter().map(|(index, _)| *index));
        let accesses = accesses.map_or(String::new(), |one| one.to_string());
        ranges
            .into_iter()
            .map(move |range| format!("{accesses} {range}"))
    });
    let msrs: Vec<_> = msrs.collect();
    format!("{}: {}", refused.feature.bit, msrs.join(", "))
}

/// Returns registers as ranges, each with the name of its first register.
fn in_ranges(indices: impl Iterator<Item = MsrIndex>) -> Vec<String> {
    let all = MsrSet::new(indices.map(MsrRange::one));
    let ranges = all.iter().flat_map(MsrSet::ranges);
    ranges
        .map(|range| registers::titled_range(*range))
        .collect()
}

/// Returns warnings about registers that a guest may write and that a VMM loses if it saves only
/// the registers that KVM lists.
pub fn of_saved<'c>(
    compiled: &'c Compiled,
    cpu: Option<&Cpu>,
    is_lost: impl FnMut(MsrIndex) -> bool,
) -> Vec<Warning<'c>> {
    let policy = compiled.policy();
    let writes = unsaved_writes(compiled.on(cpu), is_lost).into_iter();
    let warning = |(entry, msrs): (&'c Entry, Vec<MsrIndex>)| Warning {
        code: Code::NotSaved,
        entry: Some(entry),
        message: format!(
            "a guest may write registers of `{}` that this host's KVM_GET_MSR_INDEX_LIST does not name: a migration may lose them",
            one_line(entry.key())
        ),
        details: in_ranges(msrs.into_iter()),
        help: "have the VMM save these registers by index, or refuse the writes".to_owned(),
    };
    writes
        .map(|one| (policy.entry(one.entry), one.msrs))
        .map(warning)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{NoIncludes, Source, compile, parse};

    fn compiled(text: &str) -> Compiled {
        let source = Source::new("policy.toml", text);
        compile(parse(&source, &mut NoIncludes).expect("a policy")).expect("a filter")
    }

    fn shown(warning: &Warning<'_>) -> String {
        let line = warning.entry.map_or(0, |entry| entry.place().line);
        let (code, details) = (warning.code.word(), warning.details.join(" | "));
        format!("{code} {line}: {} [{details}]", warning.message)
    }

    #[test]
    fn cpuid_refused_warnings_are_grouped_by_entry() {
        let compiled = compiled(
            "policy = 1\ndefault = 'deny'\n[msrs]\nIA32_SPEC_CTRL = 'r'\nIA32_TSC_ADJUST = 'rw'",
        );
        let on = ["SPEC_CTRL", "TSC_ADJUST", "XSAVES", "PAT"];
        let warnings = of_cpuid(&compiled, None, |bit| on.contains(&bit.feature));
        let shown: Vec<_> = warnings.iter().map(shown).collect();
        assert_eq!(
            shown,
            [
                "cpuid-refused 0: `default` refuses registers that CPUID offers to guests on this host [PAT (CPUID 0x1 EDX bit 16): rw 0x277 IA32_PAT | SPEC_CTRL (CPUID 0x7 EDX bit 26): w 0x49 IA32_PRED_CMD | XSAVES (CPUID 0xd.1 EAX bit 3): rw 0xda0 IA32_XSS]",
                "cpuid-refused 4: `IA32_SPEC_CTRL` refuses registers that CPUID offers to guests on this host [SPEC_CTRL (CPUID 0x7 EDX bit 26): w 0x48 IA32_SPEC_CTRL]",
            ]
        );
    }

    #[test]
    fn not_saved_warning_names_registers() {
        let compiled = compiled("policy = 1\ndefault = 'deny'\n[msrs]\n'0x200..=0x203' = 'rw'");
        let warnings = of_saved(&compiled, None, |index| index.get() != 0x201);
        let details: Vec<_> = warnings.iter().map(|one| one.details.join(", ")).collect();
        assert_eq!(
            details,
            ["0x200 IA32_MTRR_PHYSBASE0, 0x202..=0x203 from IA32_MTRR_PHYSBASE1"]
        );
        assert_eq!(warnings[0].entry.map(|entry| entry.place().line), Some(4));
    }
}
