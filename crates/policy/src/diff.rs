//! What another program would change for a guest, by MSR and direction, over all 2^32 of both.

use std::collections::BTreeSet;

use msrgate_filter::Access;

use crate::action::{Action, Comparison};
use crate::cpu::{Cpu, distinguished};
use crate::msrs::MsrRange;
use crate::program::{Program, ProgramSettings, ProgramVariant};
use crate::rules::{Origin, Rule, Rules};
use crate::settings::{Log, Mode, UnknownAction};

/// Which way a change goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Direction {
    /// It lets the guest do more.
    Looser,
    /// It lets the guest do something else: neither is the looser. It has to be looked at as if it
    /// were looser.
    Different,
    /// It lets the guest do less.
    Stricter,
    /// The guest can do what it could.
    Neutral,
}

impl Direction {
    /// Whether a guest may do something that it could not do before.
    #[must_use]
    pub const fn may_loosen(self) -> bool {
        matches!(self, Self::Looser | Self::Different)
    }

    /// Which way it is from `was` to `is`, which are not equal.
    fn of(was: &Action, is: &Action) -> Self {
        match (is.compared_with(was), was.compared_with(is)) {
            (Comparison::NoLooser, _) => Self::Stricter,
            (Comparison::Looser, _) | (_, Comparison::NoLooser) => Self::Looser,
            (Comparison::Different, _) => Self::Different,
        }
    }
}

/// Consecutive MSRs that another thing happens to.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Change {
    /// The MSRs.
    pub msrs: MsrRange,
    /// In this direction.
    pub access: Access,
    /// What happened, and what said so of the first of them.
    pub was: (Action, Origin),
    /// What happens, and what says so of the first of them.
    pub is: (Action, Origin),
    /// Which way it goes.
    pub direction: Direction,
}

/// A setting that says something else.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SettingChange {
    /// Its key, such as `unknown.read`.
    pub key: &'static str,
    /// What it said, as a policy writes it.
    pub was: String,
    /// What it says.
    pub is: String,
    /// Which way it goes.
    pub direction: Direction,
}

/// What changes on processors on which the same `[[when]]`s of both programs hold.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Difference {
    /// One of these processors; `None` where neither program asks for one.
    pub cpu: Option<Cpu>,
    /// What changes, in order, reads first.
    pub changes: Vec<Change>,
}

/// What changes from `old` to `new` on this processor, or on every one: one difference for each
/// pair of variants that some processor brings together, those without a change left out.
///
/// # Examples
/// ```
/// use msrgate_filter::{Fallback, Filter, Revision};
/// use msrgate_policy::{Program, differences};
///
/// let filter = Filter::new(Revision::Mainline, Fallback::Allow, Vec::new())?;
/// let program = Program::of_filter(filter);
/// assert!(differences(&program, &program, None).is_empty());
/// # Ok::<_, msrgate_filter::FilterError>(())
/// ```
#[must_use]
pub fn differences(old: &Program, new: &Program, cpu: Option<&Cpu>) -> Vec<Difference> {
    let ways = || {
        let sets: Vec<_> = old.whens().iter().chain(new.whens()).cloned().collect();
        let ways = distinguished(&sets).into_iter();
        ways.map(|(_, cpu)| cpu).collect()
    };
    let cpus = cpu.map_or_else(ways, |cpu| vec![cpu.clone()]);
    let asks = !old.whens().is_empty() || !new.whens().is_empty();
    let mut seen = BTreeSet::new();
    cpus.into_iter()
        .filter_map(|cpu| Some((old.on(&cpu)?, new.on(&cpu)?, cpu)))
        .filter(|(old, new, _)| seen.insert((old.holds().to_vec(), new.holds().to_vec())))
        .map(|(old, new, cpu)| Difference {
            cpu: asks.then_some(cpu),
            changes: changes(old, new),
        })
        .filter(|difference| !difference.changes.is_empty())
        .collect()
}

/// What changes from one variant to another, in order, reads first; neighbours that change alike
/// are one.
#[must_use]
pub fn changes(old: &ProgramVariant, new: &ProgramVariant) -> Vec<Change> {
    let of = |access| between(old.rules(), new.rules(), access);
    Access::ALL.into_iter().flat_map(of).collect()
}

fn between(old: &Rules, new: &Rules, access: Access) -> Vec<Change> {
    let (mut olds, mut news) = (old.of(access).iter(), new.of(access).iter());
    let (mut old, mut new) = (olds.next(), news.next());
    let mut changes: Vec<Change> = Vec::new();
    while let (Some(was), Some(is)) = (old, new) {
        if let Some(msrs) = was.msrs.shared(is.msrs)
            && was.action != is.action
        {
            push(&mut changes, msrs, access, (was, is));
        }
        // Both cover everything, so that both end at 2^32.
        if was.msrs.last() <= is.msrs.last() {
            old = olds.next();
        }
        if is.msrs.last() <= was.msrs.last() {
            new = news.next();
        }
    }
    changes
}

fn push(changes: &mut Vec<Change>, msrs: MsrRange, access: Access, (was, is): (&Rule, &Rule)) {
    if let Some(before) = changes.last_mut()
        && before.msrs.last().get().checked_add(1) == Some(msrs.first().get())
        && (&before.was.0, &before.is.0) == (&was.action, &is.action)
        && let Some(joined) = MsrRange::new(before.msrs.first(), msrs.last())
    {
        before.msrs = joined;
        return;
    }
    changes.push(Change {
        msrs,
        access,
        was: (was.action.clone(), was.origin),
        is: (is.action.clone(), is.origin),
        direction: Direction::of(&was.action, &is.action),
    });
}

/// What changes outside of the rules.
#[must_use]
pub fn setting_changes(old: &ProgramSettings, new: &ProgramSettings) -> Vec<SettingChange> {
    let mode = |settings: &ProgramSettings| match settings.mode {
        Mode::Enforce => "enforce".to_owned(),
        Mode::Audit => "audit".to_owned(),
    };
    // Audit refuses nothing.
    let mode_direction = match new.mode {
        Mode::Audit => Direction::Looser,
        Mode::Enforce => Direction::Stricter,
    };
    let devices = |settings: &ProgramSettings| match settings.microcode {
        Some(device) => format!(
            "revision {:#x}, update {:?}",
            device.revision, device.update
        ),
        None => "none".to_owned(),
    };
    let (was, is) = (&old.unknown, &new.unknown);
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

/// #GP is the strictest; an answer lets the guest go on, whatever it is.
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

fn word(log: Log) -> String {
    match log {
        Log::None => "none",
        Log::Denied => "denied",
        Log::First => "first",
        Log::All => "all",
    }
    .to_owned()
}

#[cfg(test)]
#[cfg(feature = "parse")]
mod tests;
