//! The encoder of a program. Numbers are little-endian; a list or a text follows its length, in 32
//! bits.

use alloc::vec::Vec;
use core::ops::RangeInclusive;

use msrgate_filter::{Access, DefaultAction, Filter};

use super::{Program, ProgramSettings, Variant, saturated};
use crate::action::{Action, Device, Mask, Outside};
use crate::cpu::{Cpu, CpuSet};
use crate::digest::Digest;
use crate::origin::Origin;
use crate::rules::{Rule, Rules};
use crate::settings::{Log, Microcode, Mode, UnknownAction, Update};

/// The first bytes of every program.
pub(super) const MAGIC: [u8; 8] = *b"msrgate\0";
/// The version of the program format, which follows the first bytes of every program.
pub(super) const VERSION: u16 = 1;

pub(super) fn program(program: &Program) -> Vec<u8> {
    let mut to = Writer(Vec::new());
    to.0.extend(MAGIC);
    to.0.extend(VERSION.to_le_bytes());
    to.0.extend(program.digest.bytes());
    to.option(program.settings.name.as_deref(), Writer::text);
    to.list(&program.settings.accept, |to, word| to.text(word));
    to.behaviour(&program.settings);
    to.list(&program.files, |to, file| to.text(file));
    to.list(&program.whens, Writer::cpus);
    to.list(&program.variants, Writer::variant);
    to.0
}

/// Returns the digest of these settings and variants. If all variants do the same, the digest
/// covers only one of them. Otherwise the digest covers all variants, in an order that does not
/// depend on the order of the `[[when]]` sections.
pub(super) fn digest(settings: &ProgramSettings, whens: &[CpuSet], variants: &[Variant]) -> Digest {
    let does = |variant: &Variant| {
        let mut to = Writer(b"msrgate rules 1\0".to_vec());
        to.behaviour(settings);
        to.canonical(&variant.rules);
        Digest::of(&to.0)
    };
    let mut ways: Vec<_> = variants
        .iter()
        .map(|variant| {
            let holding = whens.iter().zip(&variant.holds);
            let mut holding: Vec<_> = holding.map(|(when, holds)| (cpus(when), *holds)).collect();
            holding.sort_unstable();
            holding.dedup();
            (holding, does(variant))
        })
        .collect();
    ways.sort_unstable_by(|one, other| one.0.cmp(&other.0));
    if let Some((_, first)) = ways.first()
        && ways.iter().all(|(_, digest)| digest == first)
    {
        return *first;
    }
    let mut to = Writer(b"msrgate variants 1\0".to_vec());
    to.list(&ways, |to, (holding, digest)| {
        to.list(holding, |to, (cpus, holds)| {
            to.0.extend(cpus);
            to.0.push(u8::from(*holds));
        });
        to.0.extend(digest.bytes());
    });
    Digest::of(&to.0)
}

/// Encodes a set of processors, with its vendors, families, models and steppings sorted.
fn cpus(set: &CpuSet) -> Vec<u8> {
    let mut set = set.clone();
    if let Some(vendors) = &mut set.vendor {
        vendors.sort_unstable();
        vendors.dedup();
    }
    let numbers = [&mut set.family, &mut set.model, &mut set.stepping];
    for numbers in numbers.into_iter().flatten() {
        *numbers = joined(numbers);
    }
    let mut to = Writer(Vec::new());
    to.cpus(&set);
    to.0
}

/// Returns the numbers of `ranges` as ranges that ascend and do not touch.
fn joined(ranges: &[RangeInclusive<u32>]) -> Vec<RangeInclusive<u32>> {
    let mut ranges = ranges.to_vec();
    ranges.sort_unstable_by_key(|range| *range.start());
    let mut apart: Vec<RangeInclusive<u32>> = Vec::new();
    for range in ranges {
        match apart.last_mut() {
            Some(before) if before.end().saturating_add(1) >= *range.start() => {
                *before = *before.start()..=*before.end().max(range.end());
            }
            _ => apart.push(range),
        }
    }
    apart
}

struct Writer(Vec<u8>);

impl Writer {
    fn u32(&mut self, number: u32) {
        self.0.extend(number.to_le_bytes());
    }

    fn u64(&mut self, number: u64) {
        self.0.extend(number.to_le_bytes());
    }

    fn text(&mut self, text: &str) {
        self.u32(saturated(text.len()));
        self.0.extend(text.as_bytes());
    }

    fn option<T>(&mut self, value: Option<T>, write: impl FnOnce(&mut Self, T)) {
        self.0.push(u8::from(value.is_some()));
        if let Some(value) = value {
            write(self, value);
        }
    }

    fn list<T>(&mut self, values: &[T], mut write: impl FnMut(&mut Self, &T)) {
        self.u32(saturated(values.len()));
        for value in values {
            write(self, value);
        }
    }

    /// Writes the settings that decide what happens to accesses.
    fn behaviour(&mut self, settings: &ProgramSettings) {
        self.0.push(match settings.mode {
            Mode::Enforce => 0,
            Mode::Audit => 1,
        });
        self.log(settings.log);
        self.unknown(settings.unknown.read);
        self.unknown(settings.unknown.write);
        self.option(settings.unknown.log, Self::log);
        self.option(settings.microcode, |to, Microcode { revision, update }| {
            to.u32(revision);
            to.0.push(match update {
                Update::Accept => 0,
                Update::Ignore => 1,
                Update::Deny => 2,
            });
        });
    }

    fn log(&mut self, log: Log) {
        self.0.push(match log {
            Log::None => 0,
            Log::Denied => 1,
            Log::First => 2,
            Log::All => 3,
        });
    }

    fn unknown(&mut self, action: UnknownAction) {
        match action {
            UnknownAction::Deny => self.0.push(0),
            UnknownAction::Value(value) => {
                self.0.push(1);
                self.u64(value);
            }
            UnknownAction::Ignore => self.0.push(2),
        }
    }

    fn cpus(&mut self, set: &CpuSet) {
        self.option(set.vendor.as_ref(), |to, vendors| {
            to.list(vendors, |to, vendor| to.text(vendor));
        });
        for numbers in [&set.family, &set.model, &set.stepping] {
            self.option(numbers.as_ref(), |to, numbers| {
                to.list(numbers, |to, range| {
                    to.u32(*range.start());
                    to.u32(*range.end());
                });
            });
        }
    }

    fn variant(&mut self, variant: &Variant) {
        // `holds` is written without its length, because it has one value for each `[[when]]` section.
        self.0
            .extend(variant.holds.iter().map(|&holds| u8::from(holds)));
        let Cpu {
            vendor,
            family,
            model,
            stepping,
        } = &variant.example;
        self.text(vendor);
        for number in [family, model, stepping] {
            self.u32(*number);
        }
        self.u64(variant.reasons.bits());
        self.filter(&variant.filter);
        for access in Access::ALL {
            self.u32(saturated(variant.rules.count(access)));
            for rule in variant.rules.of(access) {
                self.rule(rule, variant.rules.origin(rule.by));
            }
        }
    }

    fn filter(&mut self, filter: &Filter) {
        self.0.push(match filter.default_action() {
            DefaultAction::Allow => 0,
            DefaultAction::Deny => 1,
        });
        self.list(filter.ranges(), |to, range| {
            to.u32(range.accesses().bits());
            to.u32(range.base().get());
            to.u32(range.bitmap().count());
            range.bitmap().words().iter().for_each(|&word| to.u64(word));
        });
    }

    /// Writes a rule. Only the last MSR of the rule is written, because the rule begins where the
    /// previous rule ends.
    fn rule(&mut self, rule: Rule<'_>, origin: Origin) {
        self.u32(rule.msrs.last().get());
        self.log(rule.log);
        match origin {
            Origin::Kvm => self.0.push(0),
            Origin::Default => self.0.push(1),
            Origin::Line(line) => {
                self.0.push(2);
                self.u32(line.file.number());
                self.u32(line.number);
            }
        }
        self.action(rule.action);
    }

    fn action(&mut self, action: &Action) {
        match action {
            Action::Allow => self.0.push(0),
            Action::Deny => self.0.push(1),
            Action::Kill => self.0.push(2),
            Action::Handler(name) => {
                self.0.push(3);
                self.text(name);
            }
            Action::Device(Device::Microcode) => self.0.push(4),
            Action::Register(register) => {
                self.0.push(5);
                self.u64(register.reset);
                self.mask(register.mask);
            }
            Action::Value(value) => {
                self.0.push(6);
                self.u64(*value);
            }
            Action::Ignore => self.0.push(7),
            Action::Mask(mask) => {
                self.0.push(8);
                self.mask(*mask);
            }
            Action::Pin => self.0.push(9),
            Action::Sticky(bits) => {
                self.0.push(10);
                self.u64(*bits);
            }
        }
    }

    fn mask(&mut self, mask: Mask) {
        self.u64(mask.bits);
        self.0.push(match mask.outside {
            Outside::Deny => 0,
            Outside::Keep => 1,
        });
    }

    /// Writes the outcomes of the rules without their origins. Neighbouring rules with the same
    /// outcome are written as one.
    fn canonical(&mut self, rules: &Rules) {
        for access in Access::ALL {
            let mut rules = rules.of(access).peekable();
            while let Some(rule) = rules.next() {
                let goes_on = |next: &Rule<'_>| (next.action, next.log) == (rule.action, rule.log);
                if !rules.peek().is_some_and(goes_on) {
                    self.u32(rule.msrs.last().get());
                    self.log(rule.log);
                    self.action(rule.action);
                }
            }
        }
    }
}
