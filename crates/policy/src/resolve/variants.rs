//! The ways in which the `[[when]]`s of a policy hold, and what is wrong in each.

use std::collections::HashSet;
use std::sync::Arc;

use msrgate_filter::{Access, MsrIndex};
use msrgate_program::{
    Action, Cpu, DecidedBy, EntryId, Line, ResolvedVariant, Rule, Rules, distinguished, told_apart,
};

use super::finals::Finals;
use super::overrides::Overrides;
use super::{conflict, lines, rules};
use crate::mistake::{Label, Mistake, Wrong};
use crate::parse::Stated;
use crate::policy::{Entry, Log, Policy, Replaces};
use crate::registers;
use crate::source::quoted;

/// More ways than this are a mistake: each becomes a filter of its own.
const MAX_VARIANTS: usize = 64;

/// With more processors than this to look at, those ways are not looked for.
const MAX_TOLD_APART: usize = 1 << 20;

/// The entries that hold together on some processors.
#[derive(Clone, Debug)]
pub(crate) struct Active {
    /// Which of the `[[when]]`s hold.
    pub(crate) holds: Vec<bool>,
    /// A processor on which they do.
    pub(crate) example: Cpu,
    /// The entries that decide; those that are overridden are not among them.
    pub(crate) entries: Vec<EntryId>,
}

impl Active {
    /// Whether an entry holds on these processors. An overridden entry does, too.
    pub(super) fn has(&self, entry: &Entry) -> bool {
        entry.when.is_none_or(|when| self.holds[when.number()])
    }
}

/// All ways in which the `[[when]]`s hold on some processor; the one in which none does, if there
/// is such a processor, first.
pub(crate) fn variants(policy: &Policy) -> Vec<Active> {
    let cpus: Vec<_> = policy.whens.iter().map(|when| when.cpus.clone()).collect();
    let overrides = Overrides::of(policy);
    let active = |(holds, example): (Vec<bool>, Cpu)| {
        let is_active = |id: &EntryId| {
            let when = policy.entry(*id).when;
            when.is_none_or(|when| holds[when.number()])
        };
        let is_overridden = |id: EntryId| overrides.of_entry(id).any(|by| is_active(&by));
        let entries = policy
            .ids()
            .filter(is_active)
            .filter(|id| !is_overridden(*id))
            .collect();
        Active {
            holds,
            example,
            entries,
        }
    };
    distinguished(&cpus).into_iter().map(active).collect()
}

/// Everything that is wrong with the entries together, and the rules of each variant. Of a variant that has
/// mistakes there may be none. `stated` are the settings of each text.
pub(super) fn resolve(policy: &Policy, stated: &[Stated]) -> (Vec<Mistake>, Vec<ResolvedVariant>) {
    let mut mistakes = without_effect(policy);
    let cpus: Vec<_> = policy.whens.iter().map(|when| when.cpus.clone()).collect();
    let too_many = |what, found, limit| Mistake {
        wrong: Wrong::TooMany { what, found, limit },
        places: Vec::new(),
    };
    let found = told_apart(&cpus);
    if found > MAX_TOLD_APART {
        let what = "processors that its `when`s tell apart";
        mistakes.push(too_many(what, found, MAX_TOLD_APART));
        return (mistakes, Vec::new());
    }
    let variants = variants(policy);
    if variants.len() > MAX_VARIANTS {
        let what = "ways in which its `when`s hold";
        mistakes.push(too_many(what, variants.len(), MAX_VARIANTS));
        return (mistakes, Vec::new());
    }
    let overrides = Overrides::of(policy);
    let finals = Finals::new(policy, stated, &overrides);
    let lines = lines(policy);
    let mut seen: HashSet<Mistake> = HashSet::new();
    let mut resolved = Vec::new();
    for active in variants {
        let (found, rules) = of_variant(policy, &active, &finals, &lines);
        for mistake in found {
            if seen.insert(mistake.clone()) {
                mistakes.push(mistake);
            }
        }
        resolved.extend(rules.map(|rules| ResolvedVariant {
            holds: active.holds,
            example: active.example,
            rules,
        }));
    }
    (mistakes, resolved)
}

fn of_variant(
    policy: &Policy,
    active: &Active,
    finals: &Finals<'_>,
    lines: &Arc<[Line]>,
) -> (Vec<Mistake>, Option<Rules>) {
    let entries: Vec<_> = active
        .entries
        .iter()
        .map(|&id| (id, policy.entry(id)))
        .collect();
    let mut mistakes = conflict::find(&entries);
    // What the smallest entry says means nothing where two of them disagree.
    if !mistakes.is_empty() {
        return (mistakes, None);
    }
    let table = rules(policy, &active.entries, Arc::clone(lines));
    mistakes.extend(finals.broken(active, &table));
    for access in Access::ALL {
        mistakes.extend(
            table
                .of(access)
                .filter_map(|one| unsound(policy, one, access)),
        );
        mistakes.extend(at_the_top(policy, table.at(MsrIndex::MAX, access)));
    }
    (mistakes, Some(table))
}

/// Overrides of nothing, and devices that are not there.
fn without_effect(policy: &Policy) -> Vec<Mistake> {
    let overrides = Overrides::of(policy);
    let mut mistakes = Vec::new();
    for id in policy.ids() {
        let entry = policy.entry(id);
        if entry.replaces == Replaces::Included && overrides.effect(id).is_none() {
            mistakes.push(entry_mistake(
                entry,
                Wrong::OverridesNothing(quoted(&entry.key)),
            ));
        }
        let device = Access::ALL
            .into_iter()
            .find_map(|access| match entry.action(access) {
                Some(Action::Device(device)) => Some(device),
                _ => None,
            });
        if let (Some(device), None) = (device, policy.settings.microcode) {
            let (key, device) = (quoted(&entry.key), device.to_string());
            mistakes.push(entry_mistake(entry, Wrong::DeviceNotSetUp { key, device }));
        }
    }
    mistakes
}

fn entry_mistake(entry: &Entry, wrong: Wrong) -> Mistake {
    Mistake {
        wrong,
        places: vec![Label::bare(entry.at)],
    }
}

/// An action that needs accesses to be forwarded, at an MSR where that is not known to be sound.
pub(super) fn unsound(policy: &Policy, segment: Rule<'_>, access: Access) -> Option<Mistake> {
    let DecidedBy::Entry(id) = segment.by else {
        return None;
    };
    let entry = policy.entry(id);
    let log = entry.log.unwrap_or(policy.settings.log);
    let is_logged = log == Log::All && *segment.action == Action::Allow;
    if !segment.action.needs_forwarding() && !is_logged {
        return None;
    }
    let forwardable = |index: u32| {
        let register = registers::by_index(MsrIndex::new(index));
        register.is_some_and(|register| register.forward().is_some())
    };
    let range = segment.msrs.first().get()..=segment.msrs.last().get();
    let index = MsrIndex::new(range.into_iter().find(|&index| !forwardable(index))?);
    let name = registers::by_index(index).map_or(String::new(), |one| format!(" ({})", one.name));
    let msr = format!("{index}{name}");
    let wrong = if segment.action.needs_forwarding() {
        let word = segment.action.word();
        Wrong::NotForwardable { word, msr }
    } else {
        Wrong::NotLoggable { access, msr }
    };
    Some(entry_mistake(entry, wrong))
}

/// S3.5: MSR 0xffffffff obeys the default only.
fn at_the_top(policy: &Policy, last: Rule<'_>) -> Option<Mistake> {
    match last.by {
        DecidedBy::Entry(id) if *last.action != policy.settings.default => {
            let entry = policy.entry(id);
            Some(entry_mistake(
                entry,
                Wrong::NamesTheLastMsr(quoted(&entry.key)),
            ))
        }
        _ => None,
    }
}
