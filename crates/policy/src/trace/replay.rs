//! Replays recorded accesses against a policy.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use msrgate_filter::{Access, MsrIndex};
use msrgate_program::Variant;

use super::decision::Decision;
use super::{Line, LineNumber, Outcome, Traced};
use crate::policy::Policy;

/// The maximum number of pairs of MSR and direction that have rows: 65,536, so that a trace of
/// nonsense does not fill the memory. Accesses of further pairs are counted without a row.
pub const MAX_ROWS: usize = 1 << 16;

/// The maximum number of unreadable lines that are named.
const NAMED: usize = 5;

/// The decisions of a policy about the accesses of a trace, counted.
#[derive(Clone, Debug)]
pub struct Replay<'c> {
    policy: &'c Policy,
    variant: &'c Variant,
    places: HashMap<(MsrIndex, Access), Place>,
    totals: Totals,
    /// The number of lost events that the trace reports in lines of their own, between the events.
    lost: u64,
    overwritten: u64,
    /// The number of events that follow the headings, as the headings count them.
    promised: u64,
}

/// The result of an access under a policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fate {
    /// KVM handles the access.
    Allowed,
    /// User space answers the access.
    Answered,
    /// User space answers or refuses the access, depending on the register of the vCPU, which the
    /// trace does not show.
    Unsure,
    /// The access gets #GP, or ends the guest.
    Refused,
}

impl Fate {
    /// Every fate, the worst first.
    pub const ALL: [Self; 4] = [Self::Refused, Self::Unsure, Self::Answered, Self::Allowed];
}

/// The accesses of one MSR in one direction.
#[derive(Clone, Debug)]
struct Place {
    decision: Decision,
    pin: Pin,
    /// One row for each fate that an access has had.
    rows: Vec<Row>,
}

/// The values of the writes to a pinned register so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pin {
    /// The trace has no write that pins a value.
    Unwritten,
    /// All writes have this value.
    Value(u64),
    /// The values differ, or the trace does not have them all.
    Unsure,
}

/// The accesses of one MSR in one direction that have the same fate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Row {
    /// The MSR of the accesses.
    pub index: MsrIndex,
    /// The direction of the accesses: reads or writes.
    pub access: Access,
    /// The fate of the accesses.
    pub fate: Fate,
    /// The number of these accesses.
    pub count: u64,
    /// The number of accesses that ended in #GP when they were recorded.
    pub faulted: u64,
    /// The number of the line with the first of these accesses.
    pub first: LineNumber,
    /// The value of the first of these accesses, if the trace has it.
    pub value: Option<u64>,
}

/// The numbers of lines and accesses in a trace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Totals {
    /// The number of all lines.
    pub lines: u64,
    /// Accesses that the policy allows.
    pub allowed: u64,
    /// Accesses that user space would answer.
    pub answered: u64,
    /// Writes that user space may refuse or answer.
    pub unsure: u64,
    /// Accesses that the policy refuses.
    pub refused: u64,
    /// Accesses, also counted in one of the fields above, that have no [`Row`].
    pub unlisted: u64,
    /// Accesses that went to user space, recorded without their MSR; indexed by [`Access`].
    pub deflected: [u64; 2],
    /// Events that are not accesses of MSRs.
    pub other: u64,
    /// VMs of runs of `exec`, whose refused accesses the trace would show.
    pub guarded: u64,
    /// Events, also counted in [`Self::other`], that show that a vCPU runs a nested guest.
    pub nested: u64,
    /// Writes, also counted as allowed or answered, that a gate carries to KVM's registers. While a
    /// nested guest runs, a gate refuses these writes.
    pub carried: u64,
    /// The least number of events that are missing. Events that the trace reports twice count
    /// once.
    pub lost: u64,
    /// Lines that cannot be read.
    pub unreadable: u64,
    /// The numbers of the first unreadable lines.
    pub first_unreadable: Vec<LineNumber>,
    /// True if the trace ends in the middle of a line, which counts as unreadable.
    pub is_cut: bool,
}

impl Place {
    /// Returns the fate of the next access, which has this value.
    fn fate(&mut self, value: Option<u64>, totals: &mut Totals) -> Fate {
        match (self.decision, self.decision.fate(value)) {
            (_, Fate::Refused) => Fate::Refused,
            (Decision::Pin(_), _) => self.fate_of_pin(value, totals),
            (_, fate) => fate,
        }
    }

    /// Returns the fate of a write to a pinned register, by the values of all writes to it. A
    /// trace does not tell which vCPU wrote.
    fn fate_of_pin(&mut self, value: Option<u64>, totals: &mut Totals) -> Fate {
        self.pin = match (self.pin, value) {
            (Pin::Unwritten, Some(value)) => Pin::Value(value),
            (Pin::Value(pinned), Some(value)) if pinned == value => self.pin,
            _ => Pin::Unsure,
        };
        if self.pin != Pin::Unsure {
            return Fate::Answered;
        }
        // Earlier writes counted as answered, but may not have been the first write of their vCPU.
        for row in self
            .rows
            .iter_mut()
            .filter(|row| row.fate == Fate::Answered)
        {
            *totals.of(row.fate) -= row.count;
            row.fate = Fate::Unsure;
            *totals.of(row.fate) += row.count;
        }
        Fate::Unsure
    }

    /// Returns the row with the same fate as `new`; adds `new` if there is no such row.
    fn row(&mut self, new: Row) -> &mut Row {
        let known = self.rows.iter().position(|row| row.fate == new.fate);
        let at = known.unwrap_or_else(|| {
            self.rows.push(new);
            self.rows.len() - 1
        });
        &mut self.rows[at]
    }
}

impl Totals {
    /// The number of all accesses that have an MSR.
    #[must_use]
    pub const fn accesses(&self) -> u64 {
        self.allowed + self.answered + self.unsure + self.refused
    }

    /// Returns true if the trace shows nothing about a guest: it has no access, and names no VM of a run of `exec`,
    /// which would show that the run refused this VM nothing.
    #[must_use]
    pub const fn is_silent(&self) -> bool {
        self.accesses() == 0 && self.guarded == 0
    }

    /// Counts an access.
    fn count(&mut self, fate: Fate, decision: Decision) {
        *self.of(fate) += 1;
        let is_sure = matches!(fate, Fate::Allowed | Fate::Answered);
        self.carried += u64::from(is_sure && decision.is_carried());
    }

    const fn of(&mut self, fate: Fate) -> &mut u64 {
        match fate {
            Fate::Allowed => &mut self.allowed,
            Fate::Answered => &mut self.answered,
            Fate::Unsure => &mut self.unsure,
            Fate::Refused => &mut self.refused,
        }
    }

    /// Returns true if the totals cover the whole trace with certainty: all lines were read, no
    /// event is known to be lost, no access is [without its MSR](Self::nameless), and no write [may
    /// be a nested guest's](Self::may_be_of_nested_guests).
    #[must_use]
    pub const fn is_whole(&self) -> bool {
        self.lost == 0
            && self.unreadable == 0
            && self.nameless() == 0
            && !self.may_be_of_nested_guests()
    }

    /// The number of accesses that went to user space, whose MSRs the trace does not name.
    #[must_use]
    pub const fn nameless(&self) -> u64 {
        let [reads, writes] = self.deflected;
        reads + writes
    }

    /// Returns true if nested guests may have made writes that a gate refuses while they run.
    #[must_use]
    pub const fn may_be_of_nested_guests(&self) -> bool {
        self.nested > 0 && self.carried > 0
    }
}

impl<'c> Replay<'c> {
    /// Returns an empty replay under this variant of this policy.
    #[must_use]
    pub fn new(policy: &'c Policy, variant: &'c Variant) -> Self {
        Self {
            policy,
            variant,
            places: HashMap::new(),
            totals: Totals::default(),
            lost: 0,
            overwritten: 0,
            promised: 0,
        }
    }

    /// Counts one line.
    pub fn add(&mut self, number: LineNumber, line: Line) {
        let totals = &mut self.totals;
        totals.lines += 1;
        match line {
            Line::Access(traced) => self.access(number, traced),
            Line::Deflected(access) => totals.deflected[access as usize] += 1,
            Line::Other => totals.other += 1,
            Line::Nested => {
                totals.other += 1;
                totals.nested += 1;
            }
            Line::Guarded(vms) => {
                totals.other += 1;
                totals.guarded = totals.guarded.saturating_add(vms);
            }
            Line::Lost(events) => self.lost = self.lost.saturating_add(events),
            Line::Heading { kept, overwritten } => {
                self.overwritten = self.overwritten.saturating_add(overwritten);
                self.promised = self.promised.saturating_add(kept);
            }
            Line::Nothing => {}
            Line::Unreadable | Line::CutOff => {
                totals.is_cut |= line == Line::CutOff;
                totals.unreadable += 1;
                if totals.first_unreadable.len() < NAMED {
                    totals.first_unreadable.push(number);
                }
            }
        }
        let totals = &mut self.totals;
        let events = totals.accesses() + totals.nameless() + totals.other + totals.unreadable;
        let missing = self.promised.saturating_sub(events);
        totals.lost = self.lost.max(self.overwritten.saturating_add(missing));
    }

    fn access(&mut self, number: LineNumber, traced: Traced) {
        let Traced {
            index,
            access,
            value,
            ..
        } = traced;
        let is_full = self.places.len() >= MAX_ROWS;
        // This is the only lookup of an access, because a lookup takes longer than all else here.
        let place = match self.places.entry((index, access)) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(_) if is_full => return self.unlisted(traced),
            Entry::Vacant(free) => free.insert(Place {
                decision: Decision::of(self.variant, index, access),
                pin: Pin::Unwritten,
                rows: Vec::with_capacity(1),
            }),
        };
        let fate = place.fate(value, &mut self.totals);
        self.totals.count(fate, place.decision);
        let row = place.row(Row {
            index,
            access,
            fate,
            count: 0,
            faulted: 0,
            first: number,
            value,
        });
        row.count += 1;
        row.faulted += u64::from(traced.outcome == Outcome::Faulted);
    }

    /// Counts an access for which there is no room to remember its MSR.
    fn unlisted(&mut self, traced: Traced) {
        let decision = Decision::of(self.variant, traced.index, traced.access);
        let fate = match (decision, decision.fate(traced.value)) {
            (Decision::Pin(_), Fate::Answered) => Fate::Unsure,
            (_, fate) => fate,
        };
        self.totals.count(fate, decision);
        self.totals.unlisted += 1;
    }

    /// The policy against which the trace is replayed.
    #[must_use]
    pub const fn policy(&self) -> &'c Policy {
        self.policy
    }

    /// The variant of the policy against which the trace is replayed.
    #[must_use]
    pub const fn variant(&self) -> &'c Variant {
        self.variant
    }

    /// The totals of the lines so far.
    #[must_use]
    pub const fn totals(&self) -> &Totals {
        &self.totals
    }

    /// Returns the rows of one fate, in the order of their first lines.
    #[must_use]
    pub fn rows(&self, fate: Fate) -> Vec<Row> {
        let rows = self.places.values().flat_map(|place| &place.rows);
        let mut rows: Vec<_> = rows.filter(|row| row.fate == fate).copied().collect();
        rows.sort_unstable_by_key(|row| row.first);
        rows
    }
}
