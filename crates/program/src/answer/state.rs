//! What the answers to one vCPU depend on.

use alloc::boxed::Box;
use alloc::vec;
use msrgate_filter::MsrIndex;

use super::Responder;
use crate::forward::{self, CpuidBit, Row};
use crate::rules::Hints;

/// One vCPU's emulated registers and pins, for one [`Responder`].
#[derive(Clone, Debug)]
pub struct VcpuState {
    /// In the order of the responder's cells.
    pub(super) cells: Box<[u64]>,
    /// In the order of the responder's pins.
    pub(super) pins: Box<[Option<u64>]>,
    /// For each row of the allow-list, whether the vCPU's CPUID has what it needs.
    may_forward: [bool; forward::ROWS],
    /// Where rules were found.
    pub(super) hints: Hints,
}

impl VcpuState {
    /// The state at reset of a vCPU whose CPUID has what `has` says.
    #[must_use]
    pub fn new(responder: &Responder, has: impl Fn(&CpuidBit) -> bool) -> Self {
        let mut state = Self {
            cells: Box::default(),
            pins: Box::default(),
            may_forward: forward::rows().map(|row| row.needs_cpuid.iter().all(&has)),
            hints: Hints::default(),
        };
        state.reset(responder);
        state
    }

    /// What a reset or an INIT does: registers hold what they hold at reset, nothing is pinned.
    pub fn reset(&mut self, responder: &Responder) {
        self.cells = responder.cells().reset_values().collect();
        self.pins = vec![None; responder.pins().len()].into();
    }

    /// The host wrote a register past the guest, as a VMM does that resets or restores: it is no
    /// longer pinned, and if it is emulated it holds what it holds at reset.
    pub fn msr_set_by_host(&mut self, responder: &Responder, index: MsrIndex) {
        if let Some(pin) = responder.pin(index).and_then(|at| self.pins.get_mut(at)) {
            *pin = None;
        }
        if let Some((at, reset)) = responder.cell(index)
            && let Some(cell) = self.cells.get_mut(at)
        {
            *cell = reset;
        }
    }

    /// The same vCPU under another program: registers and pins that exist in both keep what they
    /// hold.
    #[must_use]
    pub fn under(&self, old: &Responder, new: &Responder) -> Self {
        let mut state = self.clone();
        state.reset(new);
        state.take_shared(new, self, old);
        state
    }

    /// The same vCPU back under the program that it was under before, and where it held `before`:
    /// registers and pins that exist in both keep what they hold, those of the old one alone hold what
    /// they held.
    #[must_use]
    pub fn back(&self, new: &Responder, before: &Self, old: &Responder) -> Self {
        let mut state = before.clone();
        state.take_shared(old, self, new);
        state
    }

    /// Takes from another program's state what both programs have.
    fn take_shared(&mut self, own: &Responder, other: &Self, others: &Responder) {
        for (index, cell) in own.cells().indices().zip(&mut self.cells) {
            let from = others.cell(index).and_then(|(at, _)| other.cells.get(at));
            *cell = from.copied().unwrap_or(*cell);
        }
        for (&index, pin) in own.pins().iter().zip(&mut self.pins) {
            let from = others.pin(index).and_then(|at| other.pins.get(at));
            *pin = from.copied().unwrap_or(*pin);
        }
    }

    /// The row of the allow-list by which accesses to this register may be forwarded for this vCPU:
    /// the list has it, and the vCPU's CPUID has what the list says it needs.
    #[inline]
    pub(super) fn may_forward(&self, index: MsrIndex) -> Option<Row> {
        forward::row(index).filter(|row| self.may_forward[row.number()])
    }

    /// An access was carried to its register.
    #[inline]
    pub fn carried(&mut self, access: &super::Forwarded) {
        if let Some((place, value)) = access.pins()
            && let Some(pin) = self.pins.get_mut(place)
        {
            pin.get_or_insert(value);
        }
    }
}
