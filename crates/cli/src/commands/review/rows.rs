//! The kinds of accesses that a policy refuses, of all recordings together.

use std::collections::BTreeMap;

use msrgate_filter::{Access, Accesses, MsrIndex};
use msrgate_policy::learn::{Fate, RefusedBy, Sighting, refused_by};
use msrgate_policy::trace;
use msrgate_policy::{Action, Compiled, Entry, Grant, Policy, Variant, grant};

use super::super::recordings::Read;
use super::advice::{Advice, Advisers};

/// One kind of access: an MSR and a direction.
pub(super) struct Row<'c> {
    pub(super) sighting: Sighting,
    pub(super) count: u64,
    /// The certainty of the refusals.
    pub(super) certainty: Certainty,
    pub(super) state: State,
    /// The part of the policy that refuses the accesses; for a row that was accepted, the entry that allows them.
    pub(super) refused_by: RefusedBy<'c>,
    pub(super) advice: Advice,
}

/// The certainty that the policy refuses accesses of a kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Certainty {
    /// The policy refuses at least one of them.
    Sure,
    /// The policy may refuse them: its answer depends on a value that the recordings do not show.
    ByValue,
}

/// The state of a refusal in a review.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// Nobody has decided about it: the default refuses the access, or an entry that was learnt.
    Open,
    /// An entry of an author refuses it.
    Decided,
    /// The guest got #GP, and nothing shows if KVM or a filter gave it to the guest.
    Unclear,
    /// KVM does not know the MSR, so that the guest got #GP without the policy, too.
    Moot,
    /// It was allowed by `--accept`.
    Accepted,
}

impl State {
    pub(super) const ALL: [Self; 5] = [
        Self::Open,
        Self::Unclear,
        Self::Decided,
        Self::Moot,
        Self::Accepted,
    ];

    pub(super) const fn word(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Decided => "decided",
            Self::Unclear => "unclear",
            Self::Moot => "moot",
            Self::Accepted => "accepted",
        }
    }
}

pub(super) struct Rows<'c> {
    compiled: &'c Compiled,
    variant: &'c Variant,
    advisers: &'c Advisers,
    by_kind: BTreeMap<(MsrIndex, Access), Row<'c>>,
}

impl<'c> Rows<'c> {
    pub(super) const fn new(
        compiled: &'c Compiled,
        variant: &'c Variant,
        advisers: &'c Advisers,
    ) -> Self {
        Self {
            compiled,
            variant,
            advisers,
            by_kind: BTreeMap::new(),
        }
    }

    /// Adds what the policy refuses of a recording, and what it may refuse.
    pub(super) fn add(&mut self, read: &Read<'_>) {
        let sightings = read.recording.sightings(&read.name);
        for (fate, certainty) in [
            (trace::Fate::Refused, Certainty::Sure),
            (trace::Fate::Unsure, Certainty::ByValue),
        ] {
            for counted in read.replay.rows(fate) {
                let kind = (counted.index, counted.access);
                let seen = sightings.iter().find(|one| (one.index, one.access) == kind);
                if let Some(seen) = seen {
                    self.add_one(seen, counted.count, certainty);
                }
            }
        }
    }

    fn add_one(&mut self, seen: &Sighting, count: u64, certainty: Certainty) {
        let (index, access) = (seen.index, seen.access);
        let refused_by = refused_by(self.compiled.policy(), self.variant, index, access);
        let state = match refused_by {
            RefusedBy::Author(_) => State::Decided,
            // Only the default decides about the last MSR.
            _ if index == MsrIndex::MAX => State::Decided,
            _ if seen.fate == Fate::Unknown => State::Moot,
            // The filter may have been this policy's own.
            RefusedBy::LearntAsUnknown(_) if seen.fate == Fate::Faulted => State::Moot,
            _ if seen.fate == Fate::Faulted => State::Unclear,
            _ => State::Open,
        };
        let row = self.by_kind.entry((index, access)).or_insert_with(|| Row {
            sighting: seen.clone(),
            count: 0,
            certainty,
            state,
            refused_by,
            advice: self.advisers.of(index, access),
        });
        row.count = row.count.saturating_add(count);
        if certainty == Certainty::Sure {
            row.certainty = certainty;
        }
        // One recording of several shows that the guest may need it.
        match (row.state, state) {
            (_, State::Open) | (State::Moot, State::Unclear) => row.state = state,
            _ => {}
        }
    }

    /// Takes the policy that `--accept` has written in place of the old one. An accepted row then has the entry that
    /// allows it, and the other rows have the entries' new lines.
    pub(super) fn rebase(&mut self, compiled: &'c Compiled, variant: &'c Variant) {
        (self.compiled, self.variant) = (compiled, variant);
        for (&(index, access), row) in &mut self.by_kind {
            row.refused_by = refused_by(compiled.policy(), variant, index, access);
        }
    }

    /// The policy under review: the new one, once `--accept` has written it.
    pub(super) const fn policy(&self) -> &'c Policy {
        self.compiled.policy()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Row<'c>> {
        self.by_kind.values()
    }

    /// Returns true if the policy ends the guest at such an access.
    pub(super) fn is_kill(&self, index: MsrIndex, access: Access) -> bool {
        *self.variant.rule(index, access).action == Action::Kill
    }

    pub(super) fn count(&self, state: State) -> usize {
        self.iter().filter(|row| row.state == state).count()
    }

    /// The number of rows that keep the review from being a yes.
    pub(super) fn undecided(&self) -> usize {
        self.count(State::Open) + self.count(State::Unclear)
    }

    /// Notes that a row was accepted. Returns the `why` of an author's entry for this MSR alone, which stays.
    pub(super) fn accept(&mut self, index: MsrIndex, access: Access) -> Option<&'c str> {
        let policy = self.compiled.policy();
        let is_own = |entry: &Entry| policy.text(entry.source()).name() == policy.source().name();
        let row = self.by_kind.get_mut(&(index, access))?;
        row.state = State::Accepted;
        match row.refused_by {
            RefusedBy::Author(entry) if is_own(entry) && entry.msrs().count() == 1 => entry.why(),
            _ => None,
        }
    }

    /// Returns the change of the policy that allows the accesses of a row: also those of the MSR's other direction, if
    /// they are listed and the same line or the default refuses them. Returns `None` if no change can allow them.
    pub(super) fn grant(&self, index: MsrIndex, access: Access) -> Option<Grant> {
        let origin = |access| {
            let by = self.variant.rule(index, access).by;
            self.variant.rules().origin(by)
        };
        let are_listed = Access::ALL
            .iter()
            .all(|access| self.by_kind.contains_key(&(index, *access)));
        let accesses = match access {
            _ if are_listed && origin(Access::Read) == origin(Access::Write) => Accesses::Both,
            Access::Read => Accesses::Read,
            Access::Write => Accesses::Write,
        };
        grant(self.compiled, origin(access), index, accesses)
    }
}
