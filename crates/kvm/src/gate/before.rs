//! What a vCPU had under the program before the one that it answers by.
//!
//! A replacement whose filter the kernel refuses is withdrawn, and the program that it stood in for
//! is in force again: vCPUs that had followed get back what only that one has. Each sets aside what
//! it had when it takes over a program that is only tried, until it sees that this is kept or takes
//! over another. That is all it ever needs: a replacement is decided before the next begins.

use msrgate_filter::MsrIndex;
use msrgate_program::answer::{Responder, VcpuState};

use super::current::Numbered;
use super::device::MicrocodeDevice;
use super::devices::Devices;

/// What is set aside.
pub(super) struct Before {
    pub(super) program: Numbered<Responder>,
    pub(super) state: VcpuState,
    /// If the program after it has none.
    pub(super) microcode: Option<MicrocodeDevice>,
}

impl Before {
    /// The vCPU is reset under the program after this one.
    pub(super) fn reset(&mut self) {
        self.state.reset(&self.program.thing);
        // One that is made anew is at the revision of its program.
        self.microcode = None;
    }

    /// The host wrote a register of the vCPU.
    pub(super) fn host_wrote(&mut self, index: MsrIndex) {
        self.state.host_wrote(&self.program.thing, index);
    }

    /// Back from the program that was withdrawn, under which the vCPU holds `state` and `devices`.
    pub(super) fn again(
        self,
        withdrawn: &Responder,
        state: &VcpuState,
        devices: &mut Devices,
    ) -> (Numbered<Responder>, VcpuState) {
        let state = state.back(withdrawn, &self.state, &self.program.thing);
        devices.back(self.microcode, &self.program.thing);
        (self.program, state)
    }
}
