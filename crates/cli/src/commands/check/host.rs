//! The warnings of `check` that depend on this host's KVM: on the CPUID that it offers, and on its list of
//! the MSRs that a VMM saves.

use msrgate_filter::MsrIndex;
use msrgate_kvm::measure::{self, KvmBackend, Supported};
use msrgate_kvm::{HostCaps, HostError, IgnoreMsrs};
use msrgate_policy::lint::{self, Code, Warning};
use msrgate_policy::{Compiled, Cpu, CpuidBit, CpuidRegister, registers};
use serde::Serialize;

use crate::cli::HostArg;
use crate::failure::Failure;

/// The host that was read, or the reason why no host was read.
pub(super) enum Host {
    Asked(Box<Asked>),
    NotAsked(String),
}

/// A host with KVM, which the command has asked for its CPUID and its list of saved MSRs.
pub(super) struct Asked {
    /// The host's name, such as `KVM of Linux 6.18`.
    name: String,
    cpu: Option<Cpu>,
    ignore_msrs: IgnoreMsrs,
    supported: Supported,
    caps: HostCaps,
}

/// The JSON of the host that the warnings are about.
#[derive(Serialize)]
pub(super) struct HostRow {
    /// The name of the host that was read; null if no host was read.
    name: Option<String>,
    /// The processor that guests of this host get.
    cpu: Option<String>,
    /// The kinds of warnings that the command could not look for, each with the reason.
    not_made: Vec<NotMade>,
}

/// A kind of warning that the command could not look for.
#[derive(Serialize)]
pub(super) struct NotMade {
    pub(super) code: &'static str,
    pub(super) why: String,
}

/// The warnings about a policy on a host.
pub(super) struct Findings<'c> {
    pub(super) warnings: Vec<Warning<'c>>,
    pub(super) not_made: Vec<NotMade>,
}

impl Host {
    pub(super) fn ask(which: HostArg) -> Result<Self, Failure> {
        if which == HostArg::None {
            return Ok(Self::NotAsked(
                "with --host none no host is asked".to_owned(),
            ));
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

    /// Returns the warnings that depend on this host. The warnings are about the processor `named`, or about
    /// the host's processor if `named` is `None`.
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
            return none(&format!("this host is {cpu}, not {named}"));
        }
        let supported = &asked.supported;
        let is_set = |bit: &CpuidBit| has(supported, bit);
        let cpu = named.or(asked.cpu.as_ref());
        let mut warnings: Vec<_> = lint::of_cpuid(compiled, cpu, is_set).into_iter().collect();
        let mut not_made_here = Vec::new();
        // With `ignore_msrs` on, KVM answers for every MSR, so the command cannot find out which MSRs KVM
        // has.
        if asked.ignore_msrs == IgnoreMsrs::On {
            let why = "kvm.ignore_msrs is on, so this host hides which MSRs KVM knows";
            not_made_here.push(not_made(Code::NotSaved, why));
        } else {
            let is_unlisted = |index: &MsrIndex| {
                supported.saved().binary_search(index).is_err()
                    && registers::is_offered(*index, is_set)
                    && supported.has(*index)
            };
            let mut trouble = None;
            let lost = |mut written: Vec<MsrIndex>| {
                written.retain(is_unlisted);
                asked.changeable(written).unwrap_or_else(|why| {
                    trouble = Some(not_made(Code::NotSaved, &why));
                    Vec::new()
                })
            };
            warnings.extend(lint::of_saved(compiled, cpu, lost));
            not_made_here.extend(trouble);
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
            caps: host,
        })
    }

    /// Returns those of the registers that a guest of this host can change. If there are none to try, no
    /// guest is run.
    fn changeable(&self, registers: Vec<MsrIndex>) -> Result<Vec<MsrIndex>, String> {
        if registers.is_empty() {
            return Ok(registers);
        }
        let mut guest =
            KvmBackend::with_machine_checks(&self.caps).map_err(|error| error.to_string())?;
        measure::changeable(&mut guest, &registers).map_err(|error| error.to_string())
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

#[cfg(test)]
mod tests {
    use msrgate_policy::{NoIncludes, Source, compile, parse};

    use super::*;

    fn compiled(text: &str) -> Compiled {
        let source = Source::new("policy.toml", text);
        compile(parse(&source, &mut NoIncludes).expect("a policy")).expect("a filter")
    }

    #[test]
    fn findings_if_no_host_was_read_list_warnings_not_looked_for() {
        let compiled = compiled("policy = 1\ndefault = 'deny'");
        let host = Host::ask(HostArg::None).expect("none is needed");
        let findings = host.findings(&compiled, None);
        assert!(findings.warnings.is_empty());
        let missing: Vec<_> = findings.not_made.iter().map(|one| one.code).collect();
        assert_eq!(missing, ["cpuid-refused", "not-saved"]);
    }
}
