//! What the answers to one vCPU depend on.

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
    pub fn host_wrote(&mut self, responder: &Responder, index: MsrIndex) {
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
        let mut state = Self {
            cells: new.cells().reset_values().collect(),
            pins: vec![None; new.pins().len()].into(),
            may_forward: self.may_forward,
            hints: Hints::default(),
        };
        for (at, index) in new.cells().indices().enumerate() {
            if let Some((from, _)) = old.cell(index) {
                state.cells[at] = self.cells[from];
            }
        }
        for (at, &index) in new.pins().iter().enumerate() {
            if let Some(from) = old.pin(index) {
                state.pins[at] = self.pins[from];
            }
        }
        state
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
