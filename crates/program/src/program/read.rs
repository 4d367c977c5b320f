//! The decoder of a program. The memory that the decoder allocates grows with the bytes that it has
//! read, not with the lengths that these bytes claim.

use alloc::boxed::Box;
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;
use core::ops::RangeInclusive;

use msrgate_filter::{
    Access, Accesses, Bitmap, DefaultAction, Filter, MsrIndex, Range, ReasonMask, Revision, X2APIC,
};

use super::write::{MAGIC, VERSION, digest};
use super::{MAX_VARIANTS, MAX_WHENS, Program, ProgramError, ProgramSettings, Variant};
use crate::action::{Action, Device, Emulated, Mask, Outside};
use crate::cpu::{Cpu, CpuSet};
use crate::digest::Digest;
use crate::msrs::MsrRange;
use crate::origin::{DecidedBy, EntryId, FileId, Line};
use crate::rules::{Outcome, Rules, RulesBuilder};
use crate::settings::{Log, Microcode, Mode, Unknown, UnknownAction, Update};

type Read<T> = Result<T, ProgramError>;

pub(super) fn program(bytes: &[u8]) -> Read<Program> {
    let mut from = Reader { bytes, at: 0 };
    if !bytes.starts_with(&MAGIC) {
        return Err(ProgramError::NotAProgram);
    }
    from.array::<{ MAGIC.len() }>()?;
    match u16::from_le_bytes(from.array()?) {
        VERSION => {}
        other => return Err(ProgramError::UnknownVersion(other)),
    }
    let found = Digest::from_bytes(from.array()?);
    let name = from.option(Reader::text)?;
    let accept = from.list(Reader::text)?;
    let settings = from.settings(name, accept)?;
    let files = from.list(Reader::text)?;
    let mut seen = BTreeSet::new();
    if let Some(again) = files.iter().find(|name| !seen.insert(*name)) {
        return Err(ProgramError::SameName(again.clone()));
    }
    let whens = from.list(Reader::cpus)?;
    from.expect(whens.len() <= MAX_WHENS, "a list of at most 32 `[[when]]`s")?;
    let variants = from.variants(&settings, &whens, files.len())?;
    if from.at != bytes.len() {
        return Err(ProgramError::Trailing { at: from.at });
    }
    let computed = digest(&settings, &whens, &variants);
    if computed != found {
        return Err(ProgramError::WrongDigest { found, computed });
    }
    Ok(Program {
        settings,
        files,
        whens,
        variants,
        digest: found,
    })
}

struct Reader<'b> {
    bytes: &'b [u8],
    at: usize,
}

impl Reader<'_> {
    fn array<const N: usize>(&mut self) -> Read<[u8; N]> {
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        let at = self.bytes.len();
        let array = rest.first_chunk().ok_or(ProgramError::Ends { at })?;
        self.at += N;
        Ok(*array)
    }

    fn u8(&mut self) -> Read<u8> {
        self.array().map(|[byte]| byte)
    }

    fn u32(&mut self) -> Read<u32> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Read<u64> {
        self.array().map(u64::from_le_bytes)
    }

    fn expect(&self, condition: bool, what: &'static str) -> Read<()> {
        if condition {
            Ok(())
        } else {
            Err(self.bad_value(what))
        }
    }

    const fn bad_value(&self, what: &'static str) -> ProgramError {
        ProgramError::Value { at: self.at, what }
    }

    fn truth(&mut self) -> Read<bool> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(self.bad_value("0 or 1")),
        }
    }

    fn text(&mut self) -> Read<Box<str>> {
        let length = self.u32()?;
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        let text = usize::try_from(length)
            .ok()
            .and_then(|length| rest.get(..length));
        let at = self.bytes.len();
        let text = text.ok_or(ProgramError::Ends { at })?;
        self.at += text.len();
        let text = str::from_utf8(text).map_err(|_| self.bad_value("text in UTF-8"))?;
        Ok(text.into())
    }

    fn option<T>(&mut self, read: impl FnOnce(&mut Self) -> Read<T>) -> Read<Option<T>> {
        self.truth()?.then(|| read(self)).transpose()
    }

    fn list<T>(&mut self, mut read: impl FnMut(&mut Self) -> Read<T>) -> Read<Vec<T>> {
        let mut values = Vec::new();
        for _ in 0..self.u32()? {
            values.push(read(self)?);
        }
        Ok(values)
    }

    fn settings(&mut self, name: Option<Box<str>>, accept: Vec<Box<str>>) -> Read<ProgramSettings> {
        let mode = match self.u8()? {
            0 => Mode::Enforce,
            1 => Mode::Audit,
            _ => return Err(self.bad_value("a mode")),
        };
        let log = self.log()?;
        let unknown = Unknown {
            read: self.unknown(Access::Read)?,
            write: self.unknown(Access::Write)?,
            log: self.option(Self::log)?,
        };
        Ok(ProgramSettings {
            name,
            mode,
            log,
            unknown,
            accept,
            microcode: self.option(Self::microcode)?,
        })
    }

    fn microcode(&mut self) -> Read<Microcode> {
        let revision = self.u32()?;
        let update = match self.u8()? {
            0 => Update::Accept,
            1 => Update::Ignore,
            2 => Update::Deny,
            _ => return Err(self.bad_value("a handling of microcode updates")),
        };
        Ok(Microcode { revision, update })
    }

    fn log(&mut self) -> Read<Log> {
        Ok(match self.u8()? {
            0 => Log::None,
            1 => Log::Denied,
            2 => Log::First,
            3 => Log::All,
            _ => return Err(self.bad_value("a log level")),
        })
    }

    fn unknown(&mut self, access: Access) -> Read<UnknownAction> {
        match (self.u8()?, access) {
            (0, _) => Ok(UnknownAction::Deny),
            (1, Access::Read) => self.u64().map(UnknownAction::Value),
            (2, Access::Write) => Ok(UnknownAction::Ignore),
            _ => Err(self.bad_value("the answer for an unknown MSR")),
        }
    }

    fn cpus(&mut self) -> Read<CpuSet> {
        Ok(CpuSet {
            vendor: self.option(|from| from.list(Self::text))?,
            family: self.option(|from| from.list(Self::numbers))?,
            model: self.option(|from| from.list(Self::numbers))?,
            stepping: self.option(|from| from.list(Self::numbers))?,
        })
    }

    fn numbers(&mut self) -> Read<RangeInclusive<u32>> {
        let (first, last) = (self.u32()?, self.u32()?);
        self.expect(
            first <= last,
            "a range whose first number is not above its last",
        )?;
        Ok(first..=last)
    }

    fn variants(
        &mut self,
        settings: &ProgramSettings,
        whens: &[CpuSet],
        files: usize,
    ) -> Read<Vec<Variant>> {
        let count = self.u32()? as usize;
        self.expect(
            (1..=MAX_VARIANTS).contains(&count),
            "a list of 1 to 64 variants",
        )?;
        let mut variants: Vec<Variant> = Vec::new();
        for _ in 0..count {
            let variant = self.variant(settings, whens, files)?;
            let is_new = variants.iter().all(|other| other.holds != variant.holds);
            self.expect(is_new, "a new combination of `[[when]]`s")?;
            variants.push(variant);
        }
        Ok(variants)
    }

    fn variant(
        &mut self,
        settings: &ProgramSettings,
        whens: &[CpuSet],
        files: usize,
    ) -> Read<Variant> {
        let holds = whens
            .iter()
            .map(|_| self.truth())
            .collect::<Read<Vec<_>>>()?;
        let example = Cpu {
            vendor: self.text()?,
            family: self.u32()?,
            model: self.u32()?,
            stepping: self.u32()?,
        };
        let real = whens.iter().map(|when| when.contains(&example));
        self.expect(
            real.eq(holds.iter().copied()),
            "a processor to which the variant applies",
        )?;
        let reasons = ReasonMask::from_bits(Revision::Mainline, self.u64()?)
            .map_err(|_| self.bad_value("a mask of exit reasons"))?;
        let filter = self.filter()?;
        let rules = self.both_directions(files)?;
        // If the mask of exit reasons lacked a reason that the rules need, the kernel itself would
        // refuse accesses that a rule lets user space answer.
        self.expect(
            reasons == super::reasons(settings, &rules),
            "the exit reasons that the rules need",
        )?;
        match rules
            .verdicts(filter.default_action().verdict())
            .first_difference(&filter)
        {
            Some((index, access, _)) => Err(ProgramError::Differs { index, access }),
            None => Ok(Variant {
                holds,
                example,
                reasons,
                filter,
                rules,
            }),
        }
    }

    fn filter(&mut self) -> Read<Filter> {
        let default_action = match self.u8()? {
            0 => DefaultAction::Allow,
            1 => DefaultAction::Deny,
            _ => return Err(self.bad_value("a default action")),
        };
        let ranges = self.list(Self::range)?;
        Filter::new(Revision::Mainline, default_action, ranges).map_err(ProgramError::Filter)
    }

    fn range(&mut self) -> Read<Range> {
        let accesses = Accesses::from_bits(self.u32()?);
        let accesses = accesses.ok_or_else(|| self.bad_value("reads, writes or both"))?;
        let base = MsrIndex::new(self.u32()?);
        let count = self.u32()?;
        let words =
            Bitmap::words_for(count).map_err(|_| self.bad_value("a range of 1 to 0x3000 MSRs"))?;
        let words = (0..words).map(|_| self.u64()).collect::<Read<Vec<_>>>()?;
        let bitmap = Bitmap::from_words(count, words.clone())
            .map_err(|_| self.bad_value("a range of 1 to 0x3000 MSRs"))?;
        self.expect(
            bitmap.words() == words,
            "zero bits after the end of a bitmap",
        )?;
        Ok(Range::new(accesses, base, bitmap))
    }

    fn both_directions(&mut self, files: usize) -> Read<Rules> {
        let mut rules = RulesBuilder::default();
        let mut lines = Lines::default();
        for access in Access::ALL {
            for _ in 0..self.u32()? {
                self.rule(access, files, &mut rules, &mut lines)?;
            }
            let is_whole = rules.last(access) == Some(MsrIndex::MAX);
            self.expect(is_whole, "rules for all MSRs")?;
        }
        let nothing_left = Outcome {
            action: Action::Deny,
            log: Log::None,
        };
        Ok(rules.finish(&nothing_left, lines.all.into()))
    }

    fn rule(
        &mut self,
        access: Access,
        files: usize,
        rules: &mut RulesBuilder,
        lines: &mut Lines,
    ) -> Read<()> {
        let before = rules.last(access).map(|last| last.get().checked_add(1));
        let first = before.unwrap_or(Some(0)).map(MsrIndex::new);
        let first = first.ok_or_else(|| self.bad_value("the end of the last rule"))?;
        let last = MsrIndex::new(self.u32()?);
        let msrs =
            MsrRange::new(first, last).ok_or_else(|| self.bad_value("a rule in order of MSRs"))?;
        let log = self.log()?;
        let by = match self.u8()? {
            0 => DecidedBy::Kvm,
            1 => DecidedBy::Default,
            2 => {
                let line = Line {
                    file: FileId::new(self.u32()?),
                    number: self.u32()?,
                };
                self.expect(
                    (line.file.number() as usize) < files,
                    "the number of a source text",
                )?;
                DecidedBy::Entry(lines.entry(line))
            }
            _ => return Err(self.bad_value("the origin of a rule")),
        };
        let action = self.action()?;
        self.expect(action.is_for(access), "an action for this direction")?;
        let outcome = Outcome { action, log };
        self.expect(
            leaves_x2apic_alone(msrs, &outcome, by),
            "the action of KVM for x2APIC registers",
        )?;
        rules.push(access, last, &outcome, by);
        Ok(())
    }

    fn action(&mut self) -> Read<Action> {
        Ok(match self.u8()? {
            0 => Action::Allow,
            1 => Action::Deny,
            2 => Action::Kill,
            3 => Action::Handler((*self.text()?).into()),
            4 => Action::Device(Device::Microcode),
            5 => Action::Register(Emulated {
                reset: self.u64()?,
                mask: self.mask()?,
            }),
            6 => Action::Value(self.u64()?),
            7 => Action::Ignore,
            8 => Action::Mask(self.mask()?),
            9 => Action::Pin,
            10 => Action::Sticky(self.u64()?),
            _ => return Err(self.bad_value("an action")),
        })
    }

    fn mask(&mut self) -> Read<Mask> {
        let bits = self.u64()?;
        let outside = match self.u8()? {
            0 => Outside::Deny,
            1 => Outside::Keep,
            _ => return Err(self.bad_value("a handling of writes to bits outside of a mask")),
        };
        Ok(Mask { bits, outside })
    }
}

/// The lines of the policy's texts that the decoded rules come from, without duplicates. An encoded
/// program does not contain the policy's entries, so each line stands for an entry.
#[derive(Default)]
struct Lines {
    all: Vec<Line>,
    places: BTreeMap<Line, EntryId>,
}

impl Lines {
    fn entry(&mut self, line: Line) -> EntryId {
        *self.places.entry(line).or_insert_with(|| {
            self.all.push(line);
            EntryId::new(self.all.len() - 1)
        })
    }
}

/// Returns true if a rule agrees with S3.1: KVM alone decides accesses to x2APIC registers, and no
/// accesses to other MSRs.
fn leaves_x2apic_alone(msrs: MsrRange, outcome: &Outcome, by: DecidedBy) -> bool {
    let (first, last) = (msrs.first(), msrs.last());
    let is_within = X2APIC.contains(&first) && X2APIC.contains(&last);
    let is_apart = last < *X2APIC.start() || first > *X2APIC.end();
    let is_untouched = (&outcome.action, outcome.log) == (&Action::Allow, Log::None);
    match by {
        DecidedBy::Kvm => is_within && is_untouched,
        _ => is_apart,
    }
}
