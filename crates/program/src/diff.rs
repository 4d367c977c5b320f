//! The changes that a guest would see if one program replaced another: for each of 2^32 MSRs in
//! each direction, and for the settings.

use alloc::borrow::ToOwned as _;
use alloc::boxed::Box;
use alloc::collections::BTreeSet;
use alloc::format;
use alloc::string::String;
use alloc::string::ToString;
use alloc::vec;
use alloc::vec::Vec;
use core::fmt;

use msrgate_filter::Access;

use crate::action::{Action, Comparison};
use crate::cpu::{Cpu, distinguished, told_apart};
use crate::msrs::MsrRange;
use crate::origin::Origin;
use crate::program::{Program, ProgramSettings, Variant};
use crate::rules::{Rule, Rules};
use crate::settings::{Log, Mode, UnknownAction};

/// The effect of a change on the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Direction {
    /// The guest can do more than before the change.
    Looser,
    /// The guest can do something else than before the change, which is neither more nor less. A
    /// reviewer should treat such a change like a looser one.
    Different,
    /// The guest can do less than before the change.
    Stricter,
    /// The guest can do the same as before the change.
    Neutral,
}

impl Direction {
    /// Returns true if a guest may be able to do something that it could not do before the change.
    #[must_use]
    pub const fn may_loosen(self) -> bool {
        matches!(self, Self::Looser | Self::Different)
    }

    /// Returns the effect on the guest if the action changes from `was` to `is`. The two actions must
    /// differ.
    #[must_use]
    pub fn of(was: &Action, is: &Action) -> Self {
        match (is.compared_with(was), was.compared_with(is)) {
            (Comparison::NoLooser, _) => Self::Stricter,
            (Comparison::Looser, _) | (_, Comparison::NoLooser) => Self::Looser,
            (Comparison::Different, _) => Self::Different,
        }
    }
}

/// Consecutive MSRs whose action changes.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Change {
    /// The MSRs whose action changes.
    pub msrs: MsrRange,
    /// The accesses whose action changes: reads or writes.
    pub access: Access,
    /// The action of the old program, and the origin of its rule for the first MSR.
    pub was: (Action, Origin),
    /// The action of the new program, and the origin of its rule for the first MSR.
    pub is: (Action, Origin),
    /// The effect of the change on the guest: it can do more, less, the same or something else.
    pub direction: Direction,
}

/// A setting whose value changes.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SettingChange {
    /// The key of the setting, such as `unknown.read`.
    pub key: &'static str,
    /// The old value of the setting, as a policy writes it.
    pub was: String,
    /// The new value of the setting, as a policy writes it.
    pub is: String,
    /// The effect of the change on the guest: it can do more, less, the same or something else.
    pub direction: Direction,
}

/// Consecutive MSRs whose logging changes: under the new program, other accesses to these MSRs become
/// events than under the old program.
///
/// Such a change does not affect the guest. If the logging differs only because the policies have
/// different [`log`](ProgramSettings::log) settings, there is a [`SettingChange`] instead of a
/// change of this type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct LogChange {
    /// The MSRs whose logging changes.
    pub msrs: MsrRange,
    /// The accesses whose logging changes: reads or writes.
    pub access: Access,
    /// The accesses that became events under the old program, and the origin of its rule for the
    /// first MSR.
    pub was: (Log, Origin),
    /// The accesses that become events under the new program, and the origin of its rule for the
    /// first MSR.
    pub is: (Log, Origin),
}

/// The changes between two programs, for the processors on which the same `[[when]]` sections of both
/// programs apply.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Difference {
    /// One of the processors on which the programs have these differences; `None` if neither
    /// program has a `[[when]]` section.
    pub cpu: Option<Cpu>,
    /// The changes of actions: first those of reads, then those of writes, each in the order of the
    /// MSRs.
    pub changes: Vec<Change>,
    /// The changes of logging: first those of reads, then those of writes, each in the order of the
    /// MSRs.
    pub logs: Vec<LogChange>,
}

/// The limit of [`differences`] for two programs with several pairs of variants. The limit applies to
/// the number of kinds of processors, and also to the number of rules of all pairs, because each rule
/// may become a change.
pub const MAX_COMPARED: usize = 1 << 20;

/// An error for two programs whose `[[when]]` sections distinguish too many processors to compare
/// the programs on all processors. A comparison on one processor is still possible.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum TooManyToCompare {
    /// The `[[when]]` sections of both programs distinguish this many processors, which is more
    /// than [`MAX_COMPARED`].
    Processors(usize),
    /// The variants of all pairs have together more rules than [`MAX_COMPARED`].
    Stretches {
        /// The number of pairs of variants: two variants are a pair if both apply on some
        /// processor.
        pairs: usize,
        /// The number of rules of the variants of all pairs, in both directions.
        found: usize,
    },
}

impl fmt::Display for TooManyToCompare {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Processors(found) => write!(
                f,
                "the `[[when]]`s of both programs distinguish {found} kinds of processors, but at most {MAX_COMPARED} can be compared at once"
            ),
            Self::Stretches { pairs, found } => write!(
                f,
                "the `[[when]]`s of both programs make {pairs} pairs of variants with {found} rules, but at most {MAX_COMPARED} rules can be compared at once"
            ),
        }
    }
}

impl core::error::Error for TooManyToCompare {}

/// Returns the changes from `old` to `new` on this processor, or on all processors if `cpu` is
/// `None`.
///
/// The result has one [`Difference`] for each pair of variants that apply on the same processor.
/// Pairs without a change are left out.
///
/// # Errors
/// [`TooManyToCompare`] if `cpu` is `None`, and the `[[when]]` sections distinguish more kinds of
/// processors than [`MAX_COMPARED`], or the programs have several pairs of variants with together more
/// than [`MAX_COMPARED`] rules. In this case the function compares nothing.
///
/// # Examples
/// ```
/// use msrgate_filter::{DefaultAction, Filter, Revision};
/// use msrgate_program::{Program, differences};
///
/// let filter = Filter::new(Revision::Mainline, DefaultAction::Allow, Vec::new())?;
/// let program = Program::of_filter(filter);
/// assert_eq!(differences(&program, &program, None), Ok(Vec::new()));
/// # Ok::<_, msrgate_filter::FilterError>(())
/// ```
pub fn differences(
    old: &Program,
    new: &Program,
    cpu: Option<&Cpu>,
) -> Result<Vec<Difference>, TooManyToCompare> {
    let pairs = match cpu {
        Some(cpu) => pairs(old, new, vec![cpu.clone()]),
        None => all_pairs(old, new)?,
    };
    let asks = !old.whens().is_empty() || !new.whens().is_empty();
    let differences = pairs
        .into_iter()
        .map(|(was, is, cpu)| Difference {
            cpu: asks.then_some(cpu),
            changes: changes(was, is),
            logs: log_changes((was, old.settings().log), (is, new.settings().log)),
        })
        .filter(|difference| !difference.changes.is_empty() || !difference.logs.is_empty());
    Ok(differences.collect())
}

/// The variant of the old program and that of the new program which apply on a processor, and that
/// processor.
type Pair<'p> = (&'p Variant, &'p Variant, Cpu);

/// Returns the pairs of variants on these processors, each pair once.
fn pairs<'p>(old: &'p Program, new: &'p Program, cpus: Vec<Cpu>) -> Vec<Pair<'p>> {
    let mut seen = BTreeSet::new();
    cpus.into_iter()
        .filter_map(|cpu| Some((old.on(&cpu)?, new.on(&cpu)?, cpu)))
        .filter(|(old, new, _)| seen.insert((old.holds().to_vec(), new.holds().to_vec())))
        .collect()
}

/// Returns the pairs of variants on all processors.
///
/// # Errors
/// [`TooManyToCompare`] if the processors, or the rules of several pairs, exceed [`MAX_COMPARED`].
fn all_pairs<'p>(old: &'p Program, new: &'p Program) -> Result<Vec<Pair<'p>>, TooManyToCompare> {
    let sets: Vec<_> = old.whens().iter().chain(new.whens()).cloned().collect();
    let processors = told_apart(&sets);
    if processors > MAX_COMPARED {
        return Err(TooManyToCompare::Processors(processors));
    }
    let ways = distinguished(&sets).into_iter();
    let pairs = pairs(old, new, ways.map(|(_, cpu)| cpu).collect());
    let of = |variant: &Variant| -> usize {
        let count = |access| variant.rules().count(access);
        Access::ALL.into_iter().map(count).sum()
    };
    let found = pairs.iter().map(|(was, is, _)| of(was) + of(is)).sum();
    // A single pair of variants has no limit, because the sizes of both programs bound it.
    if pairs.len() > 1 && found > MAX_COMPARED {
        let pairs = pairs.len();
        return Err(TooManyToCompare::Stretches { pairs, found });
    }
    Ok(pairs)
}

/// Returns the changes of actions from one variant to another: first those of reads, then those of
/// writes, each in the order of the MSRs. Adjacent changes between the same two actions are joined.
#[must_use]
pub fn changes(old: &Variant, new: &Variant) -> Vec<Change> {
    let of = |access| between(old.rules(), new.rules(), access);
    Access::ALL.into_iter().flat_map(of).collect()
}

fn between(old: &Rules, new: &Rules, access: Access) -> Vec<Change> {
    let mut changes: Vec<Change> = Vec::new();
    for (was, is) in old.zip(access, new, access) {
        if was.action != is.action {
            push(&mut changes, access, (old, was), (new, is));
        }
    }
    changes
}

/// Returns the changes of logging from one variant to another: first those of reads, then those of
/// writes, each in the order of the MSRs. The parameters have, for each variant, the `log` setting
/// of its program.
fn log_changes((old, old_log): (&Variant, Log), (new, new_log): (&Variant, Log)) -> Vec<LogChange> {
    let mut changes: Vec<LogChange> = Vec::new();
    for access in Access::ALL {
        for (was, is) in old.rules().zip(access, new.rules(), access) {
            if was.log == is.log || (was.log, is.log) == (old_log, new_log) {
                continue;
            }
            if let Some(before) = changes.last_mut()
                && (before.access, before.was.0, before.is.0) == (access, was.log, is.log)
                && let Some(joined) = before.msrs.joined(was.msrs)
            {
                before.msrs = joined;
                continue;
            }
            changes.push(LogChange {
                msrs: was.msrs,
                access,
                was: (was.log, old.rules().origin(was.by)),
                is: (is.log, new.rules().origin(is.by)),
            });
        }
    }
    changes
}

fn push(
    changes: &mut Vec<Change>,
    access: Access,
    (old, was): (&Rules, Rule<'_>),
    (new, is): (&Rules, Rule<'_>),
) {
    if let Some(before) = changes.last_mut()
        && (&before.was.0, &before.is.0) == (was.action, is.action)
        && let Some(joined) = before.msrs.joined(was.msrs)
    {
        before.msrs = joined;
        return;
    }
    changes.push(Change {
        msrs: was.msrs,
        access,
        was: (was.action.clone(), old.origin(was.by)),
        is: (is.action.clone(), new.origin(is.by)),
        direction: Direction::of(was.action, is.action),
    });
}

/// Returns the changes between the settings of two programs.
#[must_use]
pub fn setting_changes(old: &ProgramSettings, new: &ProgramSettings) -> Vec<SettingChange> {
    let mode = |settings: &ProgramSettings| match settings.mode {
        Mode::Enforce => "enforce".to_owned(),
        Mode::Audit => "audit".to_owned(),
    };
    // Audit mode refuses no access.
    let mode_direction = match new.mode {
        Mode::Audit => Direction::Looser,
        Mode::Enforce => Direction::Stricter,
    };
    let devices = |settings: &ProgramSettings| {
        let device = settings.microcode.as_ref();
        device.map_or_else(|| "none".to_owned(), ToString::to_string)
    };
    let (was, is) = (&old.unknown, &new.unknown);
    let word = |log: Log| log.word().to_owned();
    let level = |level: Option<Log>| level.map_or_else(|| "as `log`".to_owned(), word);
    [
        ("mode", mode(old), mode(new), mode_direction),
        unknown("unknown.read", was.read, is.read),
        unknown("unknown.write", was.write, is.write),
        (
            "unknown.log",
            level(was.log),
            level(is.log),
            Direction::Neutral,
        ),
        ("log", word(old.log), word(new.log), Direction::Neutral),
        (
            "device.microcode",
            devices(old),
            devices(new),
            Direction::Different,
        ),
        accept(&old.accept, &new.accept),
    ]
    .into_iter()
    .filter(|(_, was, is, _)| was != is)
    .map(|(key, was, is, direction)| SettingChange {
        key,
        was,
        is,
        direction,
    })
    .collect()
}

/// Compares two actions for MSRs that KVM does not know. #GP is the strictest action: with any other
/// action the guest continues.
fn unknown(
    key: &'static str,
    was: UnknownAction,
    is: UnknownAction,
) -> (&'static str, String, String, Direction) {
    let word = |action| match action {
        UnknownAction::Deny => "deny".to_owned(),
        UnknownAction::Value(value) => format!("{value:#x}"),
        UnknownAction::Ignore => "ignore".to_owned(),
    };
    let direction = match (was, is) {
        (UnknownAction::Deny, _) => Direction::Looser,
        (_, UnknownAction::Deny) => Direction::Stricter,
        _ => Direction::Different,
    };
    (key, word(was), word(is), direction)
}

/// Compares the lists of gaps (known ways around the filter) that two policies accept. The order of a list
/// and duplicates do not matter. A list with more gaps is looser.
fn accept(was: &[Box<str>], is: &[Box<str>]) -> (&'static str, String, String, Direction) {
    let [was, is]: [BTreeSet<&str>; 2] =
        [was, is].map(|words| words.iter().map(|word| &**word).collect());
    let word = |words: &BTreeSet<&str>| {
        let words: Vec<_> = words.iter().copied().collect();
        if words.is_empty() {
            "nothing".to_owned()
        } else {
            words.join(", ")
        }
    };
    let direction = if is.is_superset(&was) {
        Direction::Looser
    } else if is.is_subset(&was) {
        Direction::Stricter
    } else {
        Direction::Different
    };
    ("accept", word(&was), word(&is), direction)
}
