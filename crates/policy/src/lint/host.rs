//! Warnings that depend on a host: on its CPUID, and on the registers that its KVM saves.

use std::collections::BTreeMap;

use msrgate_filter::{Accesses, MsrIndex};
use msrgate_program::{Cpu, CpuidBit, DecidedBy, MsrRange, MsrSet, one_line, shown_name};

use super::machine::{Ending, Loss, RefusedFeature, refused_features, unsaved_writes};
use super::warning::{Code, Warning, is_accepted};
use crate::compile::Compiled;
use crate::policy::{Entry, Mode, Policy};
use crate::registers;

/// Returns a warning if the policy refuses registers that CPUID offers. The warning lists all of them, and
/// has a detail for each bit of CPUID and each part of the policy that refuses registers of it.
pub fn of_cpuid<'c>(
    compiled: &'c Compiled,
    cpu: Option<&Cpu>,
    is_set: impl Fn(&CpuidBit) -> bool,
) -> Option<Warning<'c>> {
    let policy = compiled.policy();
    let refused = refused_features(compiled.on(cpu), is_set);
    let faults = of_ending(&refused, Ending::Fault).map(|msrs| format!("#GP for {msrs}"));
    let kills = of_ending(&refused, Ending::Kill)
        .map(|msrs| format!("the end of the VM, or of the call that it is serving, for {msrs}"));
    let endings: Vec<_> = faults.into_iter().chain(kills).collect();
    if endings.is_empty() {
        return None;
    }
    let start = match policy.settings().mode {
        Mode::Enforce => "the policy refuses registers",
        Mode::Audit => "with `mode = \"enforce\"` the policy would refuse registers",
    };
    let message = format!(
        "{start} that CPUID offers to guests on this host: {}",
        endings.join("; ")
    );
    let help = "allow these registers, or clear their bits in the CPUID that the VMM gives its guest: a guest that finds such a bit uses its registers";
    let warning = Warning {
        details: refused
            .iter()
            .map(|one| format!("{}: {}", place(policy, one.by), line(one)))
            .collect(),
        ..Warning::new(Code::CpuidRefused, None, message, help)
    };
    Some(warning).filter(|warning| !is_accepted(policy, warning))
}

/// Returns the place of the part of a policy that decides, such as `base.toml:4 IA32_EFER` or `default`.
fn place(policy: &Policy, by: DecidedBy) -> String {
    match by {
        DecidedBy::Entry(id) => {
            let entry = policy.entry(id);
            let file = shown_name(policy.text(entry.source()).name());
            format!("{file}:{} {}", entry.place().line, one_line(entry.key()))
        }
        DecidedBy::Default | DecidedBy::Kvm => "default".to_owned(),
    }
}

/// Returns the registers whose refusal ends in this way, such as `rw 0x11..=0x12, 0x1b; w 0x6e0`.
fn of_ending(refused: &[RefusedFeature], ending: Ending) -> Option<String> {
    let mut all: BTreeMap<MsrIndex, Accesses> = BTreeMap::new();
    let of_it = refused.iter().filter(|one| one.ending == ending);
    for &(index, accesses) in of_it.flat_map(|one| &one.msrs) {
        let so_far = all.entry(index).or_insert(accesses);
        if *so_far != accesses {
            *so_far = Accesses::Both;
        }
    }
    let directions = [Accesses::Both, Accesses::Read, Accesses::Write];
    let lists = directions.into_iter().filter_map(|accesses| {
        let of_it = all.iter().filter(|(_, refused)| **refused == accesses);
        let msrs = MsrSet::new(of_it.map(|(index, _)| MsrRange::one(*index)))?;
        let ranges: Vec<_> = msrs.ranges().iter().map(ToString::to_string).collect();
        Some(format!("{accesses} {}", ranges.join(", ")))
    });
    let lists: Vec<_> = lists.collect();
    (!lists.is_empty()).then(|| lists.join("; "))
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

/// Returns warnings about registers that a guest can change and that a VMM loses if it saves only
/// the registers that KVM lists. The worst loss comes first. `lost` returns those of the given registers
/// that a guest of the host can change and that KVM does not list.
pub fn of_saved<'c>(
    compiled: &'c Compiled,
    cpu: Option<&Cpu>,
    lost: impl FnOnce(Vec<MsrIndex>) -> Vec<MsrIndex>,
) -> Vec<Warning<'c>> {
    let policy = compiled.policy();
    let writes = unsaved_writes(compiled.on(cpu), lost).into_iter();
    let warning = |(entry, msrs): (&'c Entry, Vec<(Loss, MsrIndex)>)| {
        let message = format!(
            "a guest can change registers of `{}` that this host's KVM_GET_MSR_INDEX_LIST does not name: a migration may lose them",
            one_line(entry.key())
        );
        let help = "have the VMM save these registers by index, or refuse the writes";
        let alike = msrs.chunk_by(|one, next| one.0 == next.0);
        let details = alike.flat_map(|alike| in_ranges(alike.iter().map(|(_, index)| *index)));
        Warning {
            details: details.collect(),
            ..Warning::new(Code::NotSaved, Some(entry), message, help)
        }
    };
    writes
        .map(|one| (policy.entry(one.entry), one.msrs))
        .map(warning)
        .filter(|warning| !is_accepted(policy, warning))
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

    #[test]
    fn cpuid_refused_is_one_warning_that_lists_registers_by_their_ending() {
        let text = "policy = 1\ndefault = 'deny'\n[msrs]\nIA32_SPEC_CTRL = 'r'\nIA32_TSC_ADJUST = { read = 'deny', write = 'kill' }";
        let on = ["SPEC_CTRL", "TSC_ADJUST", "XSAVES", "PAT"];
        let shown = |text: &str| {
            let compiled = compiled(text);
            let warning = of_cpuid(&compiled, None, |bit| on.contains(&bit.feature));
            warning.map(|one| (one.message, one.details))
        };
        let (message, details) = shown(text).expect("a warning");
        let lists = "#GP for rw 0x277, 0xda0; r 0x3b; w 0x48..=0x49; the end of the VM, or of the call that it is serving, for w 0x3b";
        let offers = "that CPUID offers to guests on this host";
        assert_eq!(
            message,
            format!("the policy refuses registers {offers}: {lists}")
        );
        assert_eq!(
            details,
            [
                "default: PAT (CPUID 0x1 EDX bit 16): rw 0x277 IA32_PAT",
                "policy.toml:5 IA32_TSC_ADJUST: TSC_ADJUST (CPUID 0x7 EBX bit 1): r 0x3b IA32_TSC_ADJUST",
                "policy.toml:5 IA32_TSC_ADJUST: TSC_ADJUST (CPUID 0x7 EBX bit 1): w 0x3b IA32_TSC_ADJUST",
                "policy.toml:4 IA32_SPEC_CTRL: SPEC_CTRL (CPUID 0x7 EDX bit 26): w 0x48 IA32_SPEC_CTRL",
                "default: SPEC_CTRL (CPUID 0x7 EDX bit 26): w 0x49 IA32_PRED_CMD",
                "default: XSAVES (CPUID 0xd.1 EAX bit 3): rw 0xda0 IA32_XSS",
            ]
        );
        let audit = format!("mode = 'audit'\n{text}");
        let (message, _) = shown(&audit).expect("a warning");
        assert_eq!(
            message,
            format!(
                "with `mode = \"enforce\"` the policy would refuse registers {offers}: {lists}"
            )
        );
        assert_eq!(shown(&format!("accept = ['cpuid-refused']\n{text}")), None);
        assert_eq!(shown("policy = 1\ndefault = 'allow'"), None);
    }

    #[test]
    fn not_saved_warning_names_registers() {
        let text = "policy = 1\ndefault = 'deny'\n[msrs]\n'0x200..=0x203' = 'rw'";
        let compiled_text = compiled(text);
        let lost = |all: Vec<MsrIndex>| {
            let lost = all.into_iter().filter(|index| index.get() != 0x201);
            lost.collect()
        };
        let warnings = of_saved(&compiled_text, None, lost);
        let details: Vec<_> = warnings.iter().map(|one| one.details.join(", ")).collect();
        assert_eq!(
            details,
            ["0x200 IA32_MTRR_PHYSBASE0, 0x202..=0x203 from IA32_MTRR_PHYSBASE1"]
        );
        assert_eq!(warnings[0].entry.map(|entry| entry.place().line), Some(4));
        let accepting = compiled(&format!("accept = ['not-saved']\n{text}"));
        assert!(of_saved(&accepting, None, |all| all).is_empty());
    }
}
