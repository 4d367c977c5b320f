//! The place in a policy where a change allows an access: the one decision for all who propose or write such a change.

use msrgate_filter::{Access, Accesses, MsrIndex};
use msrgate_program::Action;

use crate::policy::{Entry, OWN, Policy};

/// The place in a policy where a change allows an access that the policy refuses.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Spot<'p> {
    /// The policy's own entry for this MSR alone, on all processors. Its action changes.
    Entry(&'p Entry),
    /// No entry of now. A new one for this MSR stands below those that decide now.
    New,
    /// An included entry for this MSR alone. A new one with `override` replaces it, and keeps its other direction.
    Override(&'p Entry),
    /// The `[[when]]` of this wider entry, which gets a new entry.
    When(&'p Entry),
    /// An entry that has to change as it stands: it is in a `[[when]]`, or included with an answer for the other direction.
    ByHand(&'p Entry),
    /// A `final` entry: its author does not want the access.
    Final(&'p Entry),
}

/// Returns the place of the change that allows these accesses. The entry `by` refuses them now; `None` is the
/// policy's `default`.
pub(crate) fn spot<'p>(
    policy: &'p Policy,
    by: Option<&'p Entry>,
    index: MsrIndex,
    accesses: Accesses,
) -> Spot<'p> {
    if let Some(entry) = final_entry(policy, by, index, accesses) {
        return Spot::Final(entry);
    }
    let own = || own_entry(policy, index).map_or(Spot::New, Spot::Entry);
    let Some(entry) = by else {
        return own();
    };
    match (is_alone(entry), entry.when().is_some()) {
        (true, false) if entry.source() == OWN => Spot::Entry(entry),
        (true, false) => match other_action(entry, accesses) {
            None | Some(Action::Allow | Action::Deny) => Spot::Override(entry),
            Some(_) => Spot::ByHand(entry),
        },
        (true, true) => Spot::ByHand(entry),
        (false, false) => own(),
        (false, true) => Spot::When(entry),
    }
}

/// Returns the `final` entry that does not allow one of these accesses: it refuses the access, or leaves it to the rest of
/// the policy, which then refuses it. What the author made final is not loosened.
fn final_entry<'p>(
    policy: &'p Policy,
    by: Option<&'p Entry>,
    index: MsrIndex,
    accesses: Accesses,
) -> Option<&'p Entry> {
    let is_kept = |entry: &&Entry| {
        let mut wanted = Access::ALL.into_iter().filter(|one| accesses.contain(*one));
        entry.is_final()
            && entry.msrs().contains(index)
            && wanted.any(|access| entry.action(access) != Some(&Action::Allow))
    };
    let mut all = policy.ids().map(|id| policy.entry(id));
    by.filter(is_kept).or_else(|| all.find(is_kept))
}

/// Returns the policy's own entry for this MSR alone, on all processors.
fn own_entry(policy: &Policy, index: MsrIndex) -> Option<&Entry> {
    let mut entries = policy.ids().map(|id| policy.entry(id));
    entries.find(|entry| {
        entry.source() == OWN
            && entry.when().is_none()
            && is_alone(entry)
            && entry.msrs().contains(index)
    })
}

fn is_alone(entry: &Entry) -> bool {
    entry.msrs().count() == 1
}

/// Returns this direction alone.
pub(crate) const fn only(access: Access) -> Accesses {
    match access {
        Access::Read => Accesses::Read,
        Access::Write => Accesses::Write,
    }
}

/// The direction that is to stay as it is, if there is one.
pub(super) const fn other_than(accesses: Accesses) -> Option<Access> {
    match accesses {
        Accesses::Read => Some(Access::Write),
        Accesses::Write => Some(Access::Read),
        Accesses::Both => None,
    }
}

/// Returns the entry's action for the direction that is to stay. If there is none, returns `allow`.
pub(super) fn other_action(entry: &Entry, accesses: Accesses) -> Option<&Action> {
    match other_than(accesses) {
        Some(other) => entry.action(other),
        None => Some(&Action::Allow),
    }
}
