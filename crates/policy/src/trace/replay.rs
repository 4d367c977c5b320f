//! What a policy decides of recorded accesses.

use std::collections::HashMap;

use msrgate_filter::{Access, MsrIndex, Verdict};
use msrgate_program::{Action, Variant};

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
    rows: HashMap<(MsrIndex, Access), Row>,
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
    /// #GP, or the end of the guest.
    Refused,
}

impl Fate {
    /// All of them, the worst first.
    pub const ALL: [Self; 3] = [Self::Refused, Self::Answered, Self::Allowed];
}

/// All accesses of one MSR in one direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Row {
    /// The MSR.
    pub index: MsrIndex,
    /// The direction.
    pub access: Access,
    /// What the policy decides.
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
}

impl Totals {
    /// All accesses.
    #[must_use]
    pub const fn accesses(&self) -> u64 {
        self.allowed + self.answered + self.refused
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
            rows: HashMap::new(),
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
            Line::Unreadable => {
                totals.unreadable += 1;
                if totals.first_unreadable.len() < NAMED {
                    totals.first_unreadable.push(number);
                }
            }
        }
        self.totals.lost = self.lost.max(self.overwritten);
    }

    /// What becomes of an access.
    fn fate(&self, index: MsrIndex, access: Access) -> Fate {
        match self.variant.filter().decide(index, access).verdict {
            Verdict::Allow => Fate::Allowed,
            Verdict::Deny => match *self.variant.rules().at(index, access).action {
                Action::Deny | Action::Kill => Fate::Refused,
                _ => Fate::Answered,
            },
        }
    }

    fn access(&mut self, number: LineNumber, traced: Traced) {
        let Traced { index, access, .. } = traced;
        let known = self.rows.get(&(index, access)).map(|row| row.fate);
        let fate = known.unwrap_or_else(|| self.fate(index, access));
        match fate {
            Fate::Allowed => self.totals.allowed += 1,
            Fate::Answered => self.totals.answered += 1,
            Fate::Refused => self.totals.refused += 1,
        }
        let is_full = self.rows.len() >= MAX_ROWS;
        let row = match self.rows.get_mut(&(index, access)) {
            Some(row) => row,
            None if is_full => {
                self.totals.unlisted += 1;
                return;
            }
            None => self.rows.entry((index, access)).or_insert(Row {
                index,
                access,
                fate,
                count: 0,
                faulted: 0,
                first: number,
                value: traced.value,
            }),
        };
        row.count += 1;
        row.faulted += u64::from(traced.outcome == Outcome::Faulted);
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
        let rows = self.rows.values().filter(|row| row.fate == fate);
        let mut rows: Vec<_> = rows.copied().collect();
        rows.sort_unstable_by_key(|row| row.first);
        rows
    }
}
