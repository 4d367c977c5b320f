//! What this host's KVM makes worth knowing: its CPUID, and what it saves of a VM.

use std::collections::BTreeMap;

use msrgate_filter::MsrIndex;
use msrgate_kvm::measure::Supported;
use msrgate_kvm::{HostCaps, HostError, IgnoreMsrs};
use msrgate_policy::{
    Compiled, Cpu, CpuidBit, CpuidRegister, DecidedBy, Entry, EntryId, MsrRange, MsrSet,
    RefusedFeature, is_offered, one_line, refused_features, unsaved_writes,
};
use serde::Serialize;

use super::warnings::{Code, Warning};
use crate::cli::HostArg;
use crate::failure::Failure;
use crate::output;

/// The host that was asked, or why none was.
pub(super) enum Host {
    Asked(Box<Asked>),
    NotAsked(String),
}

/// A host with KVM.
pub(super) struct Asked {
    /// `KVM of Linux 6.18`.
    name: String,
    cpu: Option<Cpu>,
    ignore_msrs: IgnoreMsrs,
    supported: Supported,
}

/// For programs.
#[derive(Serialize)]
pub(super) struct HostRow {
    /// Which host was asked; null if none was.
    name: Option<String>,
    /// The processor that its guests get.
    cpu: Option<String>,
    /// The warnings that could not be looked for, each with the reason.
    not_made: Vec<NotMade>,
}

/// A kind of warning that could not be looked for.
#[derive(Serialize)]
pub(super) struct NotMade {
    pub(super) code: &'static str,
    pub(super) why: String,
}

/// What a host has to do with a policy.
pub(super) struct Findings<'c> {
    pub(super) warnings: Vec<Warning<'c>>,
    pub(super) not_made: Vec<NotMade>,
}

impl Host {
    pub(super) fn ask(which: HostArg) -> Result<Self, Failure> {
        if which == HostArg::None {
            return Ok(Self::NotAsked("no host was asked (--host none)".to_owned()));
        }
        match Asked::new() {
            Ok(asked) => Ok(Self::Asked(Box::new(asked))),
            Err(error) if which == HostArg::Auto => Ok(Self::NotAsked(error.to_string())),
            Err(error) => Err(Failure::Host(format!("{error}\n  {}", error.advice()))),
        }
    }

    pub(super) fn row(&self, not_made: Vec<NotMade>) -> HostRow {
        let asked = match self {
            Self::Asked(asked) => Some(asked),
            Self::NotAsked(_) => None,
        };
        HostRow {
            name: asked.map(|asked| asked.name.clone()),
            cpu: asked.and_then(|asked| Some(asked.cpu.as_ref()?.to_string())),
            not_made,
        }
    }

    /// The warnings that depend on this host, for its own processor or the one that was named.
    pub(super) fn findings<'c>(&self, compiled: &'c Compiled, named: Option<&Cpu>) -> Findings<'c> {
        let none = |why: &str| {
            let codes = [Code::CpuidRefused, Code::NotSaved].into_iter();
            Findings {
                warnings: Vec::new(),
                not_made: codes.map(|code| not_made(code, why)).collect(),
            }
        };
        let asked = match self {
            Self::Asked(asked) => asked,
            Self::NotAsked(why) => return none(why),
        };
        if let (Some(named), Some(cpu)) = (named, &asked.cpu)
            && (&named.vendor, named.family, named.model) != (&cpu.vendor, cpu.family, cpu.model)
        {
            return none(&format!("this host is no {named}, but {cpu}"));
        }
        let supported = &asked.supported;
        let is_set = |bit: &CpuidBit| has(supported, bit);
        let cpu = named.or(asked.cpu.as_ref());
        let mut warnings = refused(compiled, cpu, is_set);
        let mut not_made_here = Vec::new();
        // Such a host hands out every MSR, so that nobody can tell which it has.
        if asked.ignore_msrs == IgnoreMsrs::On {
            let why = "this host has `ignore_msrs` on, which hides what KVM has";
            not_made_here.push(not_made(Code::NotSaved, why));
        } else {
            let is_lost = |index: MsrIndex| {
                supported.saved().binary_search(&index).is_err()
                    && is_offered(index, is_set)
                    && supported.has(index)
            };
            warnings.extend(unsaved(compiled, cpu, is_lost));
        }
        Findings {
            warnings,
            not_made: not_made_here,
        }
    }
}

impl Asked {
    fn new() -> Result<Self, HostError> {
        let host = HostCaps::probe()?;
        Ok(Self {
            name: format!("KVM of Linux {}", host.release()),
            cpu: host
                .cpu()
                .map(|cpu| Cpu::from_cpuid(cpu.vendor, cpu.signature)),
            ignore_msrs: host.ignore_msrs(),
            supported: Supported::of(&host)?,
        })
    }
}

fn not_made(code: Code, why: &str) -> NotMade {
    NotMade {
        code: code.word(),
        why: why.to_owned(),
    }
}

fn has(supported: &Supported, bit: &CpuidBit) -> bool {
    let Some(leaf) = supported.cpuid(bit.leaf, bit.subleaf) else {
        return false;
    };
    let value = match bit.register {
        CpuidRegister::Eax => leaf.eax,
        CpuidRegister::Ebx => leaf.ebx,
        CpuidRegister::Ecx => leaf.ecx,
        CpuidRegister::Edx => leaf.edx,
    };
    value & (1 << bit.bit) != 0
}

/// What CPUID says is there, and the policy refuses: one warning for each entry, and one for the
/// default.
fn refused<'c>(
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
            message: format!("`{key}` refuses what the CPUID of this host's guests says is there"),
            details,
            help: "allow these, or take the bits out of the CPUID that the VMM gives its guest; a guest that goes by them gets #GP"
                .to_owned(),
        }
    };
    by_entry.into_iter().map(warning).collect()
}

/// `XSAVES (CPUID 0xd.1 EAX bit 3): rw 0xda0 IA32_XSS`.
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

/// Registers as ranges, each with the name of the first.
fn in_ranges(indices: impl Iterator<Item = MsrIndex>) -> Vec<String> {
    let all = MsrSet::new(indices.map(MsrRange::one));
    let ranges = all.iter().flat_map(MsrSet::ranges);
    ranges.map(|range| output::titled_range(*range)).collect()
}

/// What a guest may write, and a VMM that saves what it is told to loses.
fn unsaved<'c>(
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
            "a guest may write what `{}` names, and KVM_GET_MSR_INDEX_LIST of this host does not name it: a migration may lose it",
            one_line(entry.key())
        ),
        details: in_ranges(msrs.into_iter()),
        help: "have the VMM save these by number, or refuse the writes".to_owned(),
    };
    writes
        .map(|one| (policy.entry(one.entry), one.msrs))
        .map(warning)
        .collect()
}

#[cfg(test)]
mod tests {
    use msrgate_policy::{NoIncludes, Source, compile, parse};

    use super::*;

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
    fn refusals_of_what_cpuid_offers_are_grouped_by_what_refuses() {
        let compiled = compiled(
            "policy = 1\ndefault = 'deny'\n[msrs]\nIA32_SPEC_CTRL = 'r'\nIA32_TSC_ADJUST = 'rw'",
        );
        let on = ["SPEC_CTRL", "TSC_ADJUST", "XSAVES", "PAT"];
        let warnings = refused(&compiled, None, |bit| on.contains(&bit.feature));
        let shown: Vec<_> = warnings.iter().map(shown).collect();
        assert_eq!(
            shown,
            [
                "cpuid-refused 0: `default` refuses what the CPUID of this host's guests says is there [PAT (CPUID 0x1 EDX bit 16): rw 0x277 IA32_PAT | SPEC_CTRL (CPUID 0x7 EDX bit 26): w 0x49 IA32_PRED_CMD | XSAVES (CPUID 0xd.1 EAX bit 3): rw 0xda0 IA32_XSS]",
                "cpuid-refused 4: `IA32_SPEC_CTRL` refuses what the CPUID of this host's guests says is there [SPEC_CTRL (CPUID 0x7 EDX bit 26): w 0x48 IA32_SPEC_CTRL]",
            ]
        );
    }

    #[test]
    fn writes_that_nobody_saves_name_their_registers() {
        let compiled = compiled("policy = 1\ndefault = 'deny'\n[msrs]\n'0x200..=0x203' = 'rw'");
        let warnings = unsaved(&compiled, None, |index| index.get() != 0x201);
        let details: Vec<_> = warnings.iter().map(|one| one.details.join(", ")).collect();
        assert_eq!(
            details,
            ["0x200 IA32_MTRR_PHYSBASE0, 0x202..=0x203 from IA32_MTRR_PHYSBASE1"]
        );
        assert_eq!(warnings[0].entry.map(|entry| entry.place().line), Some(4));
    }

    #[test]
    fn without_a_host_it_is_said_which_warnings_are_missing() {
        let compiled = compiled("policy = 1\ndefault = 'deny'");
        let host = Host::ask(HostArg::None).expect("none is needed");
        let findings = host.findings(&compiled, None);
        assert!(findings.warnings.is_empty());
        let missing: Vec<_> = findings.not_made.iter().map(|one| one.code).collect();
        assert_eq!(missing, ["cpuid-refused", "not-saved"]);
    }
}
