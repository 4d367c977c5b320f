//! The variants of a policy, each with the entries that hold on it.

use msrgate_program::{Cpu, EntryId, distinguished};

use crate::overrides::Overrides;
use crate::policy::{Entry, Policy};

/// The entries that hold together on some processors.
#[derive(Clone, Debug)]
pub(crate) struct Active {
    /// For each `[[when]]` section of the policy, true if the section holds on these processors.
    pub(crate) holds: Vec<bool>,
    /// An example of a processor on which these entries hold.
    pub(crate) example: Cpu,
    /// The entries that hold on the processor, without overridden ones.
    pub(crate) entries: Vec<EntryId>,
}

impl Active {
    /// Returns true if an entry holds on these processors. Overridden entries count, too.
    pub(super) fn has(&self, entry: &Entry) -> bool {
        entry.when.is_none_or(|when| self.holds[when.number()])
    }
}

/// Returns all combinations of `[[when]]`s that hold together on some processor. If there is a
/// processor on which no `[[when]]` holds, that combination comes first.
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
