//! The ways in which the `[[when]]`s of a policy hold, with the entries that decide in each.

use msrgate_program::{Cpu, EntryId, distinguished};

use crate::overrides::Overrides;
use crate::policy::{Entry, Policy};

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
