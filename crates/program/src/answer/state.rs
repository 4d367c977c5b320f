//! The state of a vCPU on which the answers to its exits depend.

use alloc::boxed::Box;
use alloc::vec;
use msrgate_filter::MsrIndex;

use super::Responder;
use crate::forward::{self, CpuidBit, Row};
use crate::rules::Hints;

/// The emulated registers and pins of one vCPU, for one [`Responder`].
#[derive(Clone, Debug)]
pub struct VcpuState {
    /// The current values of the vCPU's emulated registers, each at the position that the responder
    /// has for it.
    pub(super) cells: Box<[u64]>,
    /// The value of each register that the program can pin, in the responder's order. `None` stands
    /// for a register that no write of the guest has pinned yet.
    pub(super) pins: Box<[Option<u64>]>,
    /// For each register of the forward list, true if the vCPU's CPUID has the bits that the list
    /// asks for.
    may_forward: [bool; forward::ROWS],
    /// The positions at which earlier lookups of an MSR found its rule.
    pub(super) hints: Hints,
}

impl VcpuState {
    /// Creates the state of a vCPU at reset. `has` returns true for the CPUID bits that the vCPU
    /// has.
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

    /// Resets the state, as a reset or an INIT of the vCPU does: emulated registers get their reset
    /// values, and no register is pinned.
    pub fn reset(&mut self, responder: &Responder) {
        self.cells = responder.cells().reset_values().collect();
        self.pins = vec![None; responder.pins().len()].into();
    }

    /// Adapts the state after the VMM itself has set this MSR of the vCPU, for example with
    /// `KVM_SET_MSRS`, in order to reset or restore the vCPU. The MSR is then no longer pinned; if it
    /// is an emulated register, it gets its reset value.
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

    /// Returns the state of the vCPU after the program `new` has replaced the program `old`.
    /// Emulated registers and pins that both programs have keep their values.
    #[must_use]
    pub fn under(&self, old: &Responder, new: &Responder) -> Self {
        let mut state = self.clone();
        state.reset(new);
        state.take_shared(new, self, old);
        state
    }

    /// Returns the state of the vCPU after its program `new` has been replaced by the previous
    /// program, `old`, again. `before` is the vCPU's state at the switch from `old` to `new`.
    ///
    /// Emulated registers and pins that both programs have keep their current values; those that
    /// only `old` has get their values from `before`.
    #[must_use]
    pub fn back(&self, new: &Responder, before: &Self, old: &Responder) -> Self {
        let mut state = before.clone();
        state.take_shared(old, self, new);
        state
    }

    /// Copies values from `other`, a state of the same vCPU under another program: the values of
    /// the emulated registers and pins that both programs have.
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

    /// Returns the row of the forward list for this register, if the list contains the register and
    /// the vCPU has the CPUID bits that the row needs.
    #[inline]
    pub(super) fn may_forward(&self, index: MsrIndex) -> Option<Row> {
        forward::row(index).filter(|row| self.may_forward[row.number()])
    }

    /// Records that an access that the gate has forwarded has reached the register. If the access was the
    /// first write to a register with the action `pin`, the written value is now the pinned value.
    #[inline]
    pub fn carried(&mut self, access: &super::Forwarded) {
        if let Some((place, value)) = access.pins()
            && let Some(pin) = self.pins.get_mut(place)
        {
            pin.get_or_insert(value);
        }
    }
}
