//! What a policy decides of recorded accesses.

use std::collections::HashMap;
use std::iter;

use msrgate_filter::{Access, MsrIndex, Verdict};
use msrgate_program::{Action, Emulated, Mask, Variant};

use super::held::Held;
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
    held: HashMap<MsrIndex, Held>,
    totals: Totals,
    /// Events that lines between others call lost, and those that the heading says are.
    lost: u64,
    overwritten: u64,
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

/// The policy's decision of the accesses of one MSR in one direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Decision {
    /// The same for all.
    Always(Fate),
    /// Writes to a register in user space that refuses some values.
    Register(Emulated),
    /// Writes to a register of KVM's: only the bits of the mask may change.
    Mask(Mask),
    /// Reads of such a register. They say what it holds.
    ReadOfMasked(Fate, Mask),
    /// Writes to a register of KVM's: the first one stands.
    Pin,
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

/// The fate of a write of this value, which the trace may leave out.
fn of_register(register: Emulated, value: Option<u64>) -> Fate {
    match value {
        // The bits that no write may change hold what they hold at reset.
        Some(value) if register.mask.apply(register.reset, value).is_some() => Fate::Answered,
        Some(_) => Fate::Refused,
        None => Fate::Unsure,
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
            held: HashMap::new(),
            totals: Totals::default(),
            lost: 0,
            overwritten: 0,
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
            Line::Overwritten(events) => {
                self.overwritten = self.overwritten.saturating_add(events);
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
        self.totals.lost = self.lost.max(self.overwritten);
    }

    fn decide(&self, index: MsrIndex, access: Access) -> Decision {
        let decision = self.decide_alone(index, access);
        match (access, decision) {
            (Access::Read, Decision::Always(fate)) => {
                match self.decide_alone(index, Access::Write) {
                    Decision::Mask(mask) => Decision::ReadOfMasked(fate, mask),
                    _ => decision,
                }
            }
            _ => decision,
        }
    }

    /// The decision of this direction, without a look at the other.
    fn decide_alone(&self, index: MsrIndex, access: Access) -> Decision {
        if self.variant.filter().decide(index, access).verdict == Verdict::Allow {
            return Decision::Always(Fate::Allowed);
        }
        let action = self.variant.rules().at(index, access).action;
        match *action {
            Action::Deny | Action::Kill => Decision::Always(Fate::Refused),
            _ if access == Access::Read || !action.refuses_some() => {
                Decision::Always(Fate::Answered)
            }
            Action::Register(register) => Decision::Register(register),
            Action::Mask(mask) => Decision::Mask(mask),
            Action::Pin => Decision::Pin,
            _ => Decision::Always(Fate::Answered),
        }
    }

    fn access(&mut self, number: LineNumber, traced: Traced) {
        let Traced { index, access, .. } = traced;
        let known = self.places.get(&(index, access));
        let decision = match known.map(|place| place.decision) {
            Some(decision) => decision,
            None => self.decide(index, access),
        };
        let is_listed = known.is_some() || self.places.len() < MAX_ROWS;
        let fate = match decision {
            Decision::Always(fate) => fate,
            Decision::Register(register) => of_register(register, traced.value),
            Decision::Mask(_) | Decision::Pin if !is_listed => Fate::Unsure,
            Decision::ReadOfMasked(fate, _) if !is_listed => fate,
            Decision::Mask(mask) => self.note(index, |held| held.write(mask, traced.value)),
            Decision::Pin => self.note(index, |held| held.pin(traced.value)),
            Decision::ReadOfMasked(fate, mask) => {
                if let (Some(value), Outcome::Done) = (traced.value, traced.outcome) {
                    self.note(index, |held| held.read(mask, value));
                }
                fate
            }
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

    /// Notes what an access shows of a register, and returns the fate of writes to it.
    fn note(&mut self, index: MsrIndex, next: impl FnOnce(Held) -> Held) -> Fate {
        let held = self.held.entry(index).or_default();
        let before = *held;
        *held = next(before);
        if *held != Held::Differs {
            return Fate::Answered;
        }
        // Which of the earlier writes were the first of their vCPU cannot be said now.
        if before != Held::Differs
            && let Some(place) = self.places.get_mut(&(index, Access::Write))
        {
            *self.totals.of(place.row.fate) -= place.row.count;
            place.row.fate = Fate::Unsure;
            *self.totals.of(place.row.fate) += place.row.count;
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
