//! The positions of a program's emulated registers in the state of a vCPU.

use alloc::boxed::Box;
use alloc::vec::Vec;
use msrgate_filter::{Access, MsrIndex};

use crate::action::Action;
use crate::msrs::MsrRange;
use crate::rules::{Rule, Rules};

/// The largest number of emulated registers of a vCPU. The values of so many registers take 8 KiB.
pub const MAX_CELLS: u64 = 1024;

/// The emulated registers and their positions, in the order of the MSRs.
#[derive(Clone, Debug, Default)]
pub(super) struct Cells(Box<[Stretch]>);

/// Consecutive MSRs that are emulated registers with the same reset value.
#[derive(Clone, Copy, Debug)]
struct Stretch {
    msrs: MsrRange,
    /// The reset value that each emulated register of the stretch has.
    reset: u64,
    /// The position of the stretch's first emulated register in the state of a vCPU.
    at: usize,
}

impl Cells {
    /// Returns the emulated registers to which the rules send reads or writes. If the rules send both
    /// reads and writes of an MSR to an emulated register, both use the same register, which has the
    /// reset value of the rule for reads.
    ///
    /// # Errors
    /// If there are more emulated registers than [`MAX_CELLS`], returns their number or a lower bound of it.
    pub(super) fn of(rules: &Rules) -> Result<Self, u64> {
        let of = |access| rules.of(access).filter(is_register);
        for access in Access::ALL {
            within_limit(of(access).map(|rule| rule.msrs.count()).sum())?;
        }
        let mut found = Vec::new();
        let mut add = |msrs: MsrRange, rule: Rule<'_>| {
            if let Action::Register(register) = rule.action {
                let (reset, at) = (register.reset, 0);
                found.push(Stretch { msrs, reset, at });
            }
        };
        of(Access::Read).for_each(|rule| add(rule.msrs, rule));
        for rule in of(Access::Write) {
            let reads = rules.within(rule.msrs, Access::Read);
            for read in reads.filter(|read| !is_register(read)) {
                if let Some(shared) = read.msrs.shared(rule.msrs) {
                    add(shared, rule);
                }
            }
        }
        within_limit(found.iter().map(|cells| cells.msrs.count()).sum())?;
        found.sort_by_key(|cells| cells.msrs.first());
        let mut at = 0;
        for cells in &mut found {
            cells.at = at;
            at += count(cells.msrs);
        }
        Ok(Self(found.into()))
    }

    /// Returns the position of an emulated register and its reset value.
    pub(super) fn place(&self, index: MsrIndex) -> Option<(usize, u64)> {
        let place = self.0.partition_point(|cells| cells.msrs.last() < index);
        let cells = self.0.get(place)?;
        let offset = index.get().checked_sub(cells.msrs.first().get())?;
        Some((cells.at + offset as usize, cells.reset))
    }

    /// Iterates over the MSRs of the emulated registers, in the order of their positions.
    pub(super) fn indices(&self) -> impl Iterator<Item = MsrIndex> {
        let indices = |cells: &Stretch| cells.msrs.first().get()..=cells.msrs.last().get();
        self.0.iter().flat_map(indices).map(MsrIndex::new)
    }

    /// Iterates over the reset values of the emulated registers, in the order of their positions.
    pub(super) fn reset_values(&self) -> impl Iterator<Item = u64> {
        let values = |cells: &Stretch| core::iter::repeat_n(cells.reset, count(cells.msrs));
        self.0.iter().flat_map(values)
    }
}

/// Returns the number of MSRs in a range of emulated registers, which is at most [`MAX_CELLS`].
fn count(msrs: MsrRange) -> usize {
    usize::try_from(msrs.count()).unwrap_or(0)
}

fn within_limit(count: u64) -> Result<(), u64> {
    if count > MAX_CELLS {
        Err(count)
    } else {
        Ok(())
    }
}

const fn is_register(rule: &Rule<'_>) -> bool {
    matches!(rule.action, Action::Register(_))
}
