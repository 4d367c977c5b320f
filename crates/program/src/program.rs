//! A compiled policy as a file: all that is needed to enforce it, without its text.
//!
//! `docs/decisions/0008-program-format.md` has the layout.

use alloc::boxed::Box;
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::format;
use alloc::vec;
use alloc::vec::Vec;

use msrgate_filter::{Access, ExitReason, Filter, MsrIndex, ReasonMask, Revision, Verdict};

use crate::action::{Action, Device};
use crate::cpu::{Cpu, CpuSet};
use crate::digest::Digest;
use crate::origin::FileId;
use crate::pack::CompileError;
use crate::rules::{Rule, Rules};
use crate::settings::{Log, Microcode, Mode, Unknown, UnknownAction};

mod error;
mod from_filter;
mod read;
mod write;

pub use error::ProgramError;

/// The most `[[when]]`s, and ways in which they hold, that a program has.
const MAX_WHENS: usize = 32;
const MAX_VARIANTS: usize = 64;

/// A compiled policy.
///
/// Of its filters each decides as its rules say: decoding checks it.
#[derive(Clone, Debug)]
pub struct Program {
    settings: ProgramSettings,
    files: Vec<Box<str>>,
    whens: Vec<CpuSet>,
    variants: Vec<Variant>,
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

/// The rules that hold on the processors with the same `[[when]]`s, before they are packed.
#[derive(Clone, Debug)]
pub struct ResolvedVariant {
    /// Which of the `[[when]]`s hold, in their order.
    pub holds: Vec<bool>,
    /// A processor on which they do.
    pub example: Cpu,
    /// What happens there.
    pub rules: Rules,
}

/// What a program does on the processors on which the same `[[when]]`s hold.
#[derive(Clone, Debug)]
pub struct Variant {
    holds: Vec<bool>,
    example: Cpu,
    reasons: ReasonMask,
    filter: Filter,
    rules: Rules,
}

impl Program {
    /// Packs what a policy says into a filter for each of its variants, and compares each filter with the
    /// rules over all 2^32 MSRs in both directions. `default` is the filter's, `files` are the names of
    /// the policy's texts, by [`FileId`]. Of a name, the part after its last `/` is kept. Where several are
    /// equal then, all but the first get a number: `i.toml`, `i.toml (2)`.
    ///
    /// # Errors
    /// The rules do not fit a filter, or the comparison failed.
    pub fn new(
        settings: ProgramSettings,
        files: impl IntoIterator<Item: AsRef<str>>,
        whens: Vec<CpuSet>,
        default: Verdict,
        variants: Vec<ResolvedVariant>,
    ) -> Result<Self, CompileError> {
        let pack = |resolved: ResolvedVariant| {
            let ResolvedVariant {
                holds,
                example,
                rules,
            } = resolved;
            Ok(Variant {
                holds,
                example,
                reasons: reasons(&settings, &rules),
                filter: rules.verdicts(default).pack()?,
                rules,
            })
        };
        let variants = variants.into_iter().map(pack);
        let variants = variants.collect::<Result<Vec<_>, CompileError>>()?;
        Ok(Self {
            digest: write::digest(&settings, &whens, &variants),
            files: without_folders(files),
            settings,
            whens,
            variants,
        })
    }

    /// The program of a filter without a policy: it refuses what the filter does, and answers and
    /// logs nothing.
    #[must_use]
    pub fn of_filter(filter: Filter) -> Self {
        let settings = ProgramSettings {
            log: Log::None,
            ..ProgramSettings::default()
        };
        let rules = from_filter::rules(&filter);
        let variants = vec![Variant {
            holds: Vec::new(),
            example: Cpu::any(),
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
    pub fn variants(&self) -> &[Variant] {
        &self.variants
    }

    /// What holds on this processor. A program that was made from a policy has an answer for each;
    /// where there is none, nothing may be run.
    #[must_use]
    pub fn on(&self, cpu: &Cpu) -> Option<&Variant> {
        self.place_of(cpu).map(|place| &self.variants[place])
    }

    /// The place of that among the variants.
    pub(crate) fn place_of(&self, cpu: &Cpu) -> Option<usize> {
        let holds: Vec<_> = self.whens.iter().map(|when| when.contains(cpu)).collect();
        self.variants
            .iter()
            .position(|variant| variant.holds == holds)
    }

    /// The names of the VMM's own code that the program hands accesses to, each once, in order.
    #[must_use]
    pub fn handlers(&self) -> BTreeSet<&str> {
        let mut names = BTreeSet::new();
        for action in self.actions() {
            if let Action::Handler(name) = action {
                names.insert(&**name);
            }
        }
        names
    }

    /// The emulated devices that the program hands accesses to, each once.
    #[must_use]
    pub fn devices(&self) -> BTreeSet<Device> {
        let asked = |action: &Action| match action {
            Action::Device(device) => Some(*device),
            _ => None,
        };
        self.actions().filter_map(asked).collect()
    }

    fn actions(&self) -> impl Iterator<Item = &Action> {
        let rules = self.variants.iter().flat_map(|variant| variant.rules.all());
        rules.map(|(_, rule)| rule.action)
    }

    /// The name of a text that the program was made from, without its folder, as [`new`](Self::new) keeps it.
    /// `None` if the number is another program's.
    #[must_use]
    pub fn file(&self, id: FileId) -> Option<&str> {
        let place = usize::try_from(id.number()).ok()?;
        self.files.get(place).map(|name| &**name)
    }
}

/// The part of each name after its last `/`, and a number behind those that would be equal.
fn without_folders(names: impl IntoIterator<Item: AsRef<str>>) -> Vec<Box<str>> {
    let mut seen = BTreeMap::<Box<str>, u32>::new();
    let mut unique = |name: &str| -> Box<str> {
        let last = name.rsplit('/').next().unwrap_or(name);
        let mut wanted: Box<str> = last.into();
        while seen.contains_key(&wanted) {
            let number = seen.entry(last.into()).or_insert(1);
            *number += 1;
            wanted = format!("{last} ({number})").into();
        }
        seen.insert(wanted.clone(), 1);
        wanted
    };
    names
        .into_iter()
        .map(|name| unique(name.as_ref()))
        .collect()
}

impl Variant {
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
    pub fn rule(&self, index: MsrIndex, access: Access) -> Rule<'_> {
        self.rules.at(index, access)
    }
}

/// Programs are equal if their files are.
impl PartialEq for Program {
    fn eq(&self, other: &Self) -> bool {
        self.digest == other.digest && self.encode() == other.encode()
    }
}

impl Eq for Program {}

/// A policy has no more bytes, and so no more of anything, than 32 bits count.
fn saturated(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

/// Which failed accesses user space has to see (S5.1, S5.2).
fn reasons(settings: &ProgramSettings, rules: &Rules) -> ReasonMask {
    let is_seen = |(_, rule): (Access, Rule<'_>)| match rule.log {
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
mod tests {
    use super::*;

    #[test]
    fn names_that_differ_by_their_folders_alone_get_numbers() {
        let names = [
            "p.toml",
            "a/i.toml",
            "b/i.toml",
            "i.toml (2)",
            "c/d/i.toml",
            "/p.toml",
        ];
        let wanted = [
            "p.toml",
            "i.toml",
            "i.toml (2)",
            "i.toml (2) (2)",
            "i.toml (3)",
            "p.toml (2)",
        ];
        let kept = without_folders(names);
        let kept: Vec<&str> = kept.iter().map(|name| &**name).collect();
        assert_eq!(kept, wanted);
    }
}
