//! What a policy decides of recorded accesses.

use std::collections::HashMap;
use std::iter;

use msrgate_filter::{Access, MsrIndex};
use msrgate_program::Variant;

use super::decision::Decision;
use super::{Line, LineNumber, Outcome, Traced};
use crate::policy::Policy;

/// The most pairs of MSR and direction that are listed one by one: 65,536, so that a trace of
/// nonsense does not fill the memory. Accesses of others are counted all the same.
pub const MAX_ROWS: usize = 1 << 16;

/// The most unreadable lines that are named.
const NAMED: usize = 5;

/// Counts what a policy decides of a trace.
#[derive(Clone, Debug)]
pub struct Replay<'c> {
    policy: &'c Policy,
    variant: &'c Variant,
    places: HashMap<(MsrIndex, Access), Place>,
    /// The value of all writes to a pinned register; `None` where they differ.
    pins: HashMap<MsrIndex, Option<u64>>,
    totals: Totals,
    /// Events that lines between others call lost, and those that the heading says are.
    lost: u64,
    overwritten: u64,
    /// Events that the headings say follow.
    promised: u64,
}

/// What becomes of an access under a policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fate {
    /// KVM handles it.
    Allowed,
    /// User space answers it.
    Answered,
    /// User space answers it or refuses it, by what the register of this vCPU held, which the trace
    /// does not show.
    Unsure,
    /// #GP, or the end of the guest.
    Refused,
}

impl Fate {
    /// All of them, the worst first.
    pub const ALL: [Self; 4] = [Self::Refused, Self::Unsure, Self::Answered, Self::Allowed];
}

/// The accesses of one MSR in one direction.
#[derive(Clone, Debug)]
struct Place {
    decision: Decision,
    row: Row,
    /// Writes that have another fate, by their value.
    others: Vec<Row>,
}

/// The accesses of one MSR in one direction that have the same fate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Row {
    /// The MSR.
    pub index: MsrIndex,
    /// The direction.
    pub access: Access,
    /// What becomes of them.
    pub fate: Fate,
    /// How many there are.
    pub count: u64,
    /// How many of them ended in #GP when they were recorded.
    pub faulted: u64,
    /// The line of the first.
    pub first: LineNumber,
    /// What the first read or wrote, if the trace says so.
    pub value: Option<u64>,
}

/// What a trace has in it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Totals {
    /// Lines, all of them.
    pub lines: u64,
    /// Accesses that the policy allows.
    pub allowed: u64,
    /// Accesses that user space would answer.
    pub answered: u64,
    /// Writes that it may refuse.
    pub unsure: u64,
    /// Accesses that it refuses.
    pub refused: u64,
    /// Accesses counted above of which there is no [`Row`].
    pub unlisted: u64,
    /// By [`Access`]: accesses that went to user space, without their MSR.
    pub deflected: [u64; 2],
    /// Other events.
    pub other: u64,
    /// Events that are missing, at least. Those that the trace counts in two ways count once.
    pub lost: u64,
    /// Lines that could not be read.
    pub unreadable: u64,
    /// The first of them.
    pub first_unreadable: Vec<LineNumber>,
    /// True if the trace ends in the middle of a line, which is one of the unreadable ones.
    pub is_cut: bool,
}

impl Place {
    /// The row of the same fate as `new`, which is added if there is none.
    fn other(&mut self, new: Row) -> &mut Row {
        let known = self.others.iter().position(|row| row.fate == new.fate);
        let at = known.unwrap_or_else(|| {
            self.others.push(new);
            self.others.len() - 1
        });
        &mut self.others[at]
    }

    /// Moves the writes that would be answered to those that nothing sure is said of.
    fn make_unsure(&mut self, totals: &mut Totals) {
        let all = iter::once(&mut self.row).chain(&mut self.others);
        for row in all.filter(|row| row.fate == Fate::Answered) {
            *totals.of(row.fate) -= row.count;
            row.fate = Fate::Unsure;
            *totals.of(row.fate) += row.count;
        }
    }
}

impl Totals {
    /// All accesses.
    #[must_use]
    pub const fn accesses(&self) -> u64 {
        self.allowed + self.answered + self.unsure + self.refused
    }

    const fn of(&mut self, fate: Fate) -> &mut u64 {
        match fate {
            Fate::Allowed => &mut self.allowed,
            Fate::Answered => &mut self.answered,
            Fate::Unsure => &mut self.unsure,
            Fate::Refused => &mut self.refused,
        }
    }

    /// Returns true if nothing is known to be missing: all lines could be read, and no event was lost.
    ///
    /// Accesses that went to user space are not counted as missing.
    #[must_use]
    pub const fn is_whole(&self) -> bool {
        self.lost == 0 && self.unreadable == 0
    }
}

impl<'c> Replay<'c> {
    /// Nothing yet, under this variant of this policy.
    #[must_use]
    pub fn new(policy: &'c Policy, variant: &'c Variant) -> Self {
        Self {
            policy,
            variant,
            places: HashMap::new(),
            pins: HashMap::new(),
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
        let [reads, writes] = totals.deflected;
        let events = totals.accesses() + reads + writes + totals.other + totals.unreadable;
        let missing = self.promised.saturating_sub(events);
        totals.lost = self.lost.max(self.overwritten.saturating_add(missing));
    }

    fn access(&mut self, number: LineNumber, traced: Traced) {
        let Traced { index, access, .. } = traced;
        let known = self.places.get(&(index, access));
        let decision = match known {
            Some(place) => place.decision,
            None => Decision::of(self.variant, index, access),
        };
        let is_listed = known.is_some() || self.places.len() < MAX_ROWS;
        let fate = match (decision, decision.fate(traced.value)) {
            (_, Fate::Refused) => Fate::Refused,
            (Decision::Pin(_), _) if is_listed => self.pin(index, traced.value),
            (Decision::Pin(_), _) => Fate::Unsure,
            (_, fate) => fate,
        };
        *self.totals.of(fate) += 1;
        if !is_listed {
            self.totals.unlisted += 1;
            return;
        }
        let new = Row {
            index,
            access,
            fate,
            count: 0,
            faulted: 0,
            first: number,
            value: traced.value,
        };
        let place = self.places.entry((index, access)).or_insert(Place {
            decision,
            row: new,
            others: Vec::new(),
        });
        let row = if place.row.fate == fate {
            &mut place.row
        } else {
            place.other(new)
        };
        row.count += 1;
        row.faulted += u64::from(traced.outcome == Outcome::Faulted);
    }

    /// The fate of a write to a pinned register, by the values of all such writes. A trace does not say
    /// which vCPU wrote.
    fn pin(&mut self, index: MsrIndex, value: Option<u64>) -> Fate {
        let first = self.pins.entry(index).or_insert(value);
        if first.is_none() {
            return Fate::Unsure;
        }
        if *first == value {
            return Fate::Answered;
        }
        *first = None;
        // Which of the earlier writes were the first of their vCPU cannot be said now.
        if let Some(place) = self.places.get_mut(&(index, Access::Write)) {
            place.make_unsure(&mut self.totals);
        }
        Fate::Unsure
    }

    /// The policy.
    #[must_use]
    pub const fn policy(&self) -> &'c Policy {
        self.policy
    }

    /// The variant of it.
    #[must_use]
    pub const fn variant(&self) -> &'c Variant {
        self.variant
    }

    /// What the trace has in it so far.
    #[must_use]
    pub const fn totals(&self) -> &Totals {
        &self.totals
    }

    /// The rows of one fate, in the order of their first lines.
    #[must_use]
    pub fn rows(&self, fate: Fate) -> Vec<Row> {
        let rows = self.places.values();
        let rows = rows.flat_map(|place| iter::once(&place.row).chain(&place.others));
        let mut rows: Vec<_> = rows.filter(|row| row.fate == fate).copied().collect();
        rows.sort_unstable_by_key(|row| row.first);
        rows
    }
}
