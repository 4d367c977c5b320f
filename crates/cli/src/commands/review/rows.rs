//! The kinds of accesses that a policy refuses, of all recordings together.

use std::collections::BTreeMap;

use msrgate_filter::{Access, MsrIndex};
use msrgate_policy::learn::{Fate, RefusedBy, Sighting, refused_by};
use msrgate_policy::trace;
use msrgate_policy::{Action, Policy, Variant, registers};

use super::super::recordings::Read;
use super::advice::{Advice, Advisers};

/// One kind of access: an MSR and a direction.
pub(super) struct Row<'c> {
    pub(super) sighting: Sighting,
    pub(super) count: u64,
    pub(super) state: State,
    pub(super) refused_by: RefusedBy<'c>,
    pub(super) advice: Advice,
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
    policy: &'c Policy,
    variant: &'c Variant,
    advisers: &'c Advisers,
    by_kind: BTreeMap<(MsrIndex, Access), Row<'c>>,
}

impl<'c> Rows<'c> {
    pub(super) const fn new(
        policy: &'c Policy,
        variant: &'c Variant,
        advisers: &'c Advisers,
    ) -> Self {
        Self {
            policy,
            variant,
            advisers,
            by_kind: BTreeMap::new(),
        }
    }

    /// Adds what the policy refuses of a recording: surely, or by an answer that refused it when it was recorded.
    pub(super) fn add(&mut self, read: &Read<'_>) {
        let sightings = read.recording.sightings(&read.name);
        for fate in [trace::Fate::Refused, trace::Fate::Unsure] {
            for counted in read.replay.rows(fate) {
                let kind = (counted.index, counted.access);
                let Some(seen) = sightings.iter().find(|one| (one.index, one.access) == kind)
                else {
                    continue;
                };
                if fate == trace::Fate::Refused || seen.fate == Fate::Untried {
                    self.add_one(seen, counted.count);
                }
            }
        }
    }

    fn add_one(&mut self, seen: &Sighting, count: u64) {
        let (index, access) = (seen.index, seen.access);
        let refused_by = refused_by(self.policy, self.variant, index, access);
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
            state,
            refused_by,
            advice: self.advisers.of(index, access),
        });
        row.count = row.count.saturating_add(count);
        // One recording of several shows that the guest may need it.
        match (row.state, state) {
            (_, State::Open) | (State::Moot, State::Unclear) => row.state = state,
            _ => {}
        }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Row<'c>> {
        self.by_kind.values()
    }

    pub(super) fn count(&self, state: State) -> usize {
        self.iter().filter(|row| row.state == state).count()
    }

    /// The number of rows that keep the review from being a yes.
    pub(super) fn undecided(&self) -> usize {
        self.count(State::Open) + self.count(State::Unclear)
    }

    pub(super) fn accept(&mut self, index: MsrIndex, access: Access) {
        if let Some(row) = self.by_kind.get_mut(&(index, access)) {
            row.state = State::Accepted;
        }
    }

    /// Returns the entry that allows what is listed of an MSR, and leaves allowed what is allowed.
    pub(super) fn entry(&self, index: MsrIndex) -> String {
        let is_allowed = |access| {
            self.by_kind.contains_key(&(index, access))
                || *self.variant.rule(index, access).action == Action::Allow
        };
        let rights = match Access::ALL.map(is_allowed) {
            [true, true] => "rw",
            [true, false] => "r",
            _ => "w",
        };
        let key = registers::by_index(index)
            .map_or_else(|| index.to_string(), |register| register.name.to_owned());
        format!("{key} = \"{rights}\"")
    }
}
