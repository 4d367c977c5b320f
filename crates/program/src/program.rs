//! A compiled policy as a file: all that is needed to enforce the policy, without its text.
//!
//! `docs/decisions/0008-program-format.md` describes the layout.

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
use crate::shown::is_no_file;

mod error;
mod from_filter;
mod read;
mod write;

pub use error::ProgramError;

/// The largest number of `[[when]]` sections in a program.
const MAX_WHENS: usize = 32;
/// The largest number of variants of a program.
const MAX_VARIANTS: usize = 64;

/// A compiled policy.
///
/// Each variant of a program has rules and a filter, and the filter decides every access as the
/// rules do. [`Self::decode`] checks this.
#[derive(Clone, Debug)]
pub struct Program {
    settings: ProgramSettings,
    files: Vec<Box<str>>,
    whens: Vec<CpuSet>,
    variants: Vec<Variant>,
    digest: Digest,
}

/// The settings of a whole program.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProgramSettings {
    /// The name of the policy, if the policy has the key `name`.
    pub name: Option<Box<str>>,
    /// The mode of the policy: enforce, or audit, in which refusals only become events.
    pub mode: Mode,
    /// The accesses that become events, unless an entry has its own `log`.
    pub log: Log,
    /// The policy's handling of accesses to MSRs that KVM does not know.
    pub unknown: Unknown,
    /// The known ways around the kernel's filter, called gaps, that the author of the policy accepts:
    /// the names of the gaps.
    pub accept: Vec<Box<str>>,
    /// The settings of the emulated microcode device, if the policy has the section
    /// `[device.microcode]`.
    pub microcode: Option<Microcode>,
}

/// The rules for the processors on which the same `[[when]]` sections apply, before the rules are
/// packed into a filter.
#[derive(Clone, Debug)]
pub struct ResolvedVariant {
    /// For each `[[when]]` section of the policy, in order, true if the section applies to the
    /// variant's processors.
    pub holds: Vec<bool>,
    /// A processor on which these sections apply.
    pub example: Cpu,
    /// The rules for the processors on which these sections apply.
    pub rules: Rules,
}

/// The part of a program for the processors on which the same `[[when]]` sections apply.
#[derive(Clone, Debug)]
pub struct Variant {
    holds: Vec<bool>,
    example: Cpu,
    reasons: ReasonMask,
    filter: Filter,
    rules: Rules,
}

impl Program {
    /// Creates a program: packs the rules of each variant into a filter, and compares each filter
    /// with the rules over all 2^32 MSRs in both directions.
    ///
    /// `default` is the default action of the filters. `files` are the names of the policy's texts,
    /// by [`FileId`]. Only the part of a name after its last `/` is kept. If several names are then
    /// equal, all but the first get a number: `i.toml`, `i.toml (2)`. If the name of a file would
    /// then look like msrgate's name for a text that is not a file, it gets `./` in front: see
    /// [`is_no_file`](crate::is_no_file).
    ///
    /// # Errors
    /// - [`CompileError::Pack`]: the rules do not fit a filter.
    /// - [`CompileError::Differs`]: a filter differs from its rules.
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

    /// Creates the program of a filter that comes from no policy. The program refuses the accesses that the
    /// filter denies. The program emulates no register and no device, and no access becomes an event.
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

    /// Encodes the program as the bytes of a file. A program has the same bytes on every machine.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        write::program(self)
    }

    /// Decodes the program in the bytes of a file.
    ///
    /// Decoding takes at most a small multiple of the file's size in memory, plus 128 KiB for the
    /// filter of each variant, of which there are at most 64.
    ///
    /// # Errors
    /// [`ProgramError`] if the bytes are not a complete program of a known version, if bytes follow
    /// the program, or if its digest or a filter does not match its rules.
    pub fn decode(bytes: &[u8]) -> Result<Self, ProgramError> {
        read::program(bytes)
    }

    /// Returns true if the bytes begin as a program of any version does.
    #[must_use]
    pub fn is_program(bytes: &[u8]) -> bool {
        bytes.starts_with(&write::MAGIC)
    }

    /// The settings of the whole program.
    #[must_use]
    pub const fn settings(&self) -> &ProgramSettings {
        &self.settings
    }

    /// The digest of what the program does: programs with the same digest treat every access alike.
    #[must_use]
    pub const fn digest(&self) -> Digest {
        self.digest
    }

    /// The processors to which each `[[when]]` section of the policy applies.
    #[must_use]
    pub fn whens(&self) -> &[CpuSet] {
        &self.whens
    }

    /// The variants: one for each combination of `[[when]]` sections that some processor has. The
    /// list has at least one variant.
    #[must_use]
    pub fn variants(&self) -> &[Variant] {
        &self.variants
    }

    /// Returns the variant for this processor.
    ///
    /// A program that was compiled from a policy has a variant for every processor. If there is no
    /// variant, the VMM must not run the guest.
    #[must_use]
    pub fn on(&self, cpu: &Cpu) -> Option<&Variant> {
        self.place_of(cpu).map(|place| &self.variants[place])
    }

    /// Returns the position of this processor's variant in the list of variants.
    pub(crate) fn place_of(&self, cpu: &Cpu) -> Option<usize> {
        let holds: Vec<_> = self.whens.iter().map(|when| when.contains(cpu)).collect();
        self.variants
            .iter()
            .position(|variant| variant.holds == holds)
    }

    /// Returns the names of the VMM's handlers to which the program passes accesses, without
    /// duplicates, in order.
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

    /// Returns the emulated devices to which the program passes accesses, without duplicates.
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

    /// Returns the name of a policy text that the program was compiled from, without its folder, as
    /// [`new`](Self::new) keeps it. `None` if the number does not belong to this program.
    #[must_use]
    pub fn file(&self, id: FileId) -> Option<&str> {
        let place = usize::try_from(id.number()).ok()?;
        self.files.get(place).map(|name| &**name)
    }
}

/// Returns the part of each name after its last `/`, as [`Program::new`] keeps it. A number is
/// added to names that would be equal.
fn without_folders(names: impl IntoIterator<Item: AsRef<str>>) -> Vec<Box<str>> {
    let mut seen = BTreeMap::<Box<str>, u32>::new();
    let mut unique = |name: &str| -> Box<str> {
        let last = match name.rsplit_once('/') {
            Some((_, last)) if is_no_file(last) => &format!("./{last}"),
            Some((_, last)) => last,
            None => name,
        };
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
    /// For each `[[when]]` section, in the order of [`Program::whens`], true if the section applies to
    /// the variant's processors.
    #[must_use]
    pub fn holds(&self) -> &[bool] {
        &self.holds
    }

    /// A processor to which the variant applies.
    #[must_use]
    pub const fn example(&self) -> &Cpu {
        &self.example
    }

    /// The mask of exit reasons for the kernel (`KVM_CAP_X86_USER_SPACE_MSR`): the reasons for which
    /// refused accesses have to exit to user space. The mask is empty if the kernel alone enforces the
    /// variant.
    #[must_use]
    pub const fn reasons(&self) -> ReasonMask {
        self.reasons
    }

    /// The variant's filter, to be set in the kernel.
    #[must_use]
    pub const fn filter(&self) -> &Filter {
        &self.filter
    }

    /// The rules of the variant, which cover all MSRs.
    #[must_use]
    pub const fn rules(&self) -> &Rules {
        &self.rules
    }

    /// Returns the rule for accesses to one MSR in one direction.
    #[must_use]
    pub fn rule(&self, index: MsrIndex, access: Access) -> Rule<'_> {
        self.rules.at(index, access)
    }
}

/// Compares programs by their encoded bytes.
impl PartialEq for Program {
    fn eq(&self, other: &Self) -> bool {
        self.digest == other.digest && self.encode() == other.encode()
    }
}

impl Eq for Program {}

/// Converts a count to 32 bits. Every count in a policy fits 32 bits, because the size of a policy's
/// text is limited.
fn saturated(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

/// Returns the reasons for which accesses that the kernel refuses have to exit to user space (S5.1,
/// S5.2).
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
    fn policy_file_names_that_differ_only_by_folder_get_numbers() {
        let names = [
            "p.toml",
            "a/i.toml",
            "b/i.toml",
            "i.toml (2)",
            "c/d/i.toml",
            "/p.toml",
            "sandbox.toml (shipped)",
            "./sandbox.toml (shipped)",
            "/tmp/standard input",
        ];
        let wanted = [
            "p.toml",
            "i.toml",
            "i.toml (2)",
            "i.toml (2) (2)",
            "i.toml (3)",
            "p.toml (2)",
            "sandbox.toml (shipped)",
            "./sandbox.toml (shipped)",
            "./standard input",
        ];
        let kept = without_folders(names);
        let kept: Vec<&str> = kept.iter().map(|name| &**name).collect();
        assert_eq!(kept, wanted);
    }
}
