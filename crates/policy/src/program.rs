//! A compiled policy as a file: all that is needed to enforce it, without its text.
//!
//! `docs/decisions/0008-program-format.md` has the layout.

use msrgate_filter::{Access, ExitReason, Filter, MsrIndex, ReasonMask, Revision, Verdict};

#[cfg(feature = "parse")]
use crate::compile::{Compiled, Variant};
use crate::cpu::{Cpu, CpuSet};
use crate::digest::Digest;
#[cfg(feature = "parse")]
use crate::policy::Policy;
use crate::rules::{FileId, Rule, Rules};
use crate::settings::{Log, Microcode, Mode, Unknown, UnknownAction};
#[cfg(feature = "parse")]
use crate::{
    rules::{Line, Origin},
    table::{Said, Segment},
};

mod error;
mod read;
mod write;

pub use error::ProgramError;

/// The most `[[when]]`s, and ways in which they hold, that a program has.
const MAX_WHENS: usize = 32;
const MAX_VARIANTS: usize = 64;

/// A compiled policy.
///
/// Of its filters each decides as its rules say: decoding checks it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Program {
    settings: ProgramSettings,
    files: Vec<Box<str>>,
    whens: Vec<CpuSet>,
    variants: Vec<ProgramVariant>,
    digest: Digest,
}

/// What holds for a whole program.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProgramSettings {
    /// The policy's name, if it has one.
    pub name: Option<Box<str>>,
    /// Whether refusals are carried out.
    pub mode: Mode,
    /// Which accesses become events, where no entry says otherwise.
    pub log: Log,
    /// What becomes of MSRs that KVM does not know.
    pub unknown: Unknown,
    /// Gaps in enforcement that the author knows of, by their words.
    pub accept: Vec<Box<str>>,
    /// The microcode device, if it is set up.
    pub microcode: Option<Microcode>,
}

/// What a program does on the processors on which the same `[[when]]`s hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProgramVariant {
    holds: Vec<bool>,
    example: Cpu,
    reasons: ReasonMask,
    filter: Filter,
    rules: Rules,
}

impl Program {
    /// The program of a policy. Of a text's name it keeps what follows the last `/`.
    #[cfg(feature = "parse")]
    #[must_use]
    pub fn of(compiled: &Compiled) -> Self {
        let policy = compiled.policy();
        let said = policy.settings();
        let settings = ProgramSettings {
            name: said.name.clone(),
            mode: said.mode,
            log: said.log,
            unknown: said.unknown.clone(),
            accept: said.accept.clone(),
            microcode: said.microcode,
        };
        let variant = |variant: &Variant| {
            let rule = |segment| rule(policy, segment);
            let rules = |access| variant.table().segments(access).map(rule).collect();
            let rules = Rules::new(Access::ALL.map(rules));
            ProgramVariant {
                holds: variant.holds().to_vec(),
                example: variant.example().clone(),
                reasons: reasons(&settings, &rules),
                filter: variant.filter().clone(),
                rules,
            }
        };
        let variants: Vec<_> = compiled.variants().iter().map(variant).collect();
        let files = policy.sources().iter().map(|source| {
            let name = source.name();
            name.rsplit('/').next().unwrap_or(name).into()
        });
        let whens: Vec<_> = policy
            .whens()
            .iter()
            .map(|when| when.cpus().clone())
            .collect();
        Self {
            digest: write::digest(&settings, &whens, &variants),
            files: files.collect(),
            settings,
            whens,
            variants,
        }
    }

    /// The program of a filter without a policy: it refuses what the filter does, and answers and
    /// logs nothing.
    #[must_use]
    pub fn of_filter(filter: Filter) -> Self {
        let settings = ProgramSettings {
            log: Log::None,
            ..ProgramSettings::default()
        };
        let rules = Rules::of_filter(&filter);
        let variants = vec![ProgramVariant {
            holds: Vec::new(),
            example: Cpu {
                vendor: "any".into(),
                family: 0,
                model: 0,
                stepping: 0,
            },
            reasons: reasons(&settings, &rules),
            filter,
            rules,
        }];
        Self {
            digest: write::digest(&settings, &[], &variants),
            settings,
            files: Vec::new(),
            whens: Vec::new(),
            variants,
        }
    }

    /// The file's bytes. The same program has the same bytes on every machine.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        write::program(self)
    }

    /// The program in a file. It takes at most a small multiple of the file's size in memory, and
    /// 128 KiB for the filter of each variant, of which there are at most 64.
    ///
    /// # Errors
    /// The bytes are no program of a version known here, whole and without anything after it; or it
    /// contradicts itself: its digest or a filter is not that of its rules.
    pub fn decode(bytes: &[u8]) -> Result<Self, ProgramError> {
        read::program(bytes)
    }

    /// Whether these bytes begin as a program does, of whatever version.
    #[must_use]
    pub fn is_program(bytes: &[u8]) -> bool {
        bytes.starts_with(&write::MAGIC)
    }

    /// What holds for all of it.
    #[must_use]
    pub const fn settings(&self) -> &ProgramSettings {
        &self.settings
    }

    /// What tells it apart from programs that do something else.
    #[must_use]
    pub const fn digest(&self) -> Digest {
        self.digest
    }

    /// The processors of each `[[when]]`.
    #[must_use]
    pub fn whens(&self) -> &[CpuSet] {
        &self.whens
    }

    /// One for each way in which the `[[when]]`s hold on some processor; at least one.
    #[must_use]
    pub fn variants(&self) -> &[ProgramVariant] {
        &self.variants
    }

    /// What holds on this processor. A program that was made from a policy has an answer for each;
    /// where there is none, nothing may be run.
    #[must_use]
    pub fn on(&self, cpu: &Cpu) -> Option<&ProgramVariant> {
        self.place_of(cpu).map(|place| &self.variants[place])
    }

    /// The place of that among the variants.
    pub(crate) fn place_of(&self, cpu: &Cpu) -> Option<usize> {
        let holds: Vec<_> = self.whens.iter().map(|when| when.contains(cpu)).collect();
        self.variants
            .iter()
            .position(|variant| variant.holds == holds)
    }

    /// The name of a text that the program was made from, without its folder. `None` if the number
    /// is another program's.
    #[must_use]
    pub fn file(&self, id: FileId) -> Option<&str> {
        let place = usize::try_from(id.0).ok()?;
        self.files.get(place).map(|name| &**name)
    }
}

impl ProgramVariant {
    /// Which of the `[[when]]`s hold, in the order of [`Program::whens`].
    #[must_use]
    pub fn holds(&self) -> &[bool] {
        &self.holds
    }

    /// A processor on which it holds.
    #[must_use]
    pub const fn example(&self) -> &Cpu {
        &self.example
    }

    /// Why accesses have to exit to user space: the kernel's mask. Empty where the kernel does all
    /// there is to do.
    #[must_use]
    pub const fn reasons(&self) -> ReasonMask {
        self.reasons
    }

    /// What the kernel gets.
    #[must_use]
    pub const fn filter(&self) -> &Filter {
        &self.filter
    }

    /// What happens to every MSR.
    #[must_use]
    pub const fn rules(&self) -> &Rules {
        &self.rules
    }

    /// What happens to one access.
    #[must_use]
    pub fn rule(&self, index: MsrIndex, access: Access) -> &Rule {
        self.rules.at(index, access)
    }
}

#[cfg(feature = "parse")]
fn rule(policy: &Policy, segment: Segment<'_>) -> Rule {
    let (log, origin) = match segment.said {
        Said::ByEntry(id) => {
            let entry = policy.entry(id);
            let line = Line {
                file: FileId(saturated(entry.source().number())),
                number: entry.place().line,
            };
            (
                entry.log().unwrap_or(policy.settings().log),
                Origin::Line(line),
            )
        }
        Said::ByDefault => (policy.settings().log, Origin::Default),
        Said::ByKvm => (Log::None, Origin::Kvm),
    };
    Rule {
        msrs: segment.msrs,
        action: segment.action.clone(),
        log,
        origin,
    }
}

/// A policy has no more bytes, and so no more of anything, than 32 bits count.
fn saturated(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

/// Which failed accesses user space has to see (S5.1, S5.2).
fn reasons(settings: &ProgramSettings, rules: &Rules) -> ReasonMask {
    let is_seen = |(_, rule): (Access, &Rule)| match rule.log {
        Log::First | Log::All => true,
        Log::Denied if rule.action.verdict() == Verdict::Deny => true,
        _ => rule.action.needs_answer(),
    };
    let unknown = &settings.unknown;
    let answers_unknown = unknown.read != UnknownAction::Deny
        || unknown.write != UnknownAction::Deny
        || unknown.log.is_some_and(|log| log != Log::None);
    let mut reasons = Vec::new();
    if settings.mode == Mode::Audit || rules.all().any(is_seen) {
        reasons.push(ExitReason::Filter);
    }
    if answers_unknown {
        reasons.push(ExitReason::Unknown);
    }
    ReasonMask::of(Revision::Mainline, &reasons)
}

#[cfg(test)]
#[cfg(feature = "parse")]
mod tests;
