//! A vCPU: the part of its state that RDMSR and WRMSR can see, and the effects of `KVM_RUN` on it.

use alloc::sync::Arc;
use core::fmt;

use crate::decide::{Decision, Verdict};
use crate::exit::{Exit, ExitReason, Reply};
use crate::msr::{Access, MsrIndex};
use crate::registers::{Origin, RegisterFault, Registers};
use crate::shared::{Changes, Shared, VcpuNumber};
use hardware::Intercepts;

pub(crate) mod hardware;
pub(crate) mod nested;
mod requests;
pub(crate) mod run;

/// The general registers that an MSR access reads or changes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Gprs {
    /// RAX, whose lower 32 bits are the lower half of the value that RDMSR reads or WRMSR writes.
    pub rax: u64,
    /// RCX, whose lower 32 bits are the index of the MSR to access.
    pub rcx: u64,
    /// RDX, whose lower 32 bits are the upper half of the value that RDMSR reads or WRMSR writes.
    pub rdx: u64,
    /// RIP: the address of the instruction to execute next.
    pub rip: u64,
}

impl Gprs {
    /// The registers after a reset of the processor, with the instruction pointer relative to the code
    /// segment (SDM volume 3, "Processor State After Reset").
    pub const RESET: Self = Self {
        rax: 0,
        rcx: 0,
        rdx: 0,
        rip: 0xfff0,
    };

    /// The MSR that ECX names.
    #[must_use]
    pub const fn index(&self) -> MsrIndex {
        MsrIndex::new(low(self.rcx))
    }

    /// The 64-bit value that EDX and EAX hold together: EDX is its upper half.
    #[must_use]
    pub const fn value(&self) -> u64 {
        (low(self.rdx) as u64) << 32 | low(self.rax) as u64
    }

    /// Returns the registers with `value` in EDX:EAX and the upper halves of both registers
    /// cleared, as after RDMSR.
    #[must_use]
    pub const fn with_value(self, value: u64) -> Self {
        Self {
            rax: low(value) as u64,
            rdx: value >> 32,
            ..self
        }
    }
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "it is the lower half that is wanted"
)]
const fn low(register: u64) -> u32 {
    register as u32
}

/// The privilege level of the guest's code.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Privilege {
    /// CPL 0: the guest's code may execute RDMSR and WRMSR.
    #[default]
    Kernel,
    /// CPL 1 to 3: RDMSR and WRMSR raise #GP before the filter is asked (S4).
    User,
}

/// The state of `KVM_GUESTDBG_SINGLESTEP`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum SingleStep {
    /// Single-step is off: the guest continues after an instruction.
    #[default]
    Off,
    /// Single-step is on: `KVM_RUN` returns after each instruction of the guest.
    On,
}

/// An exception that the next VM entry delivers to the guest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Queued {
    #[default]
    Nothing,
    GeneralProtection,
}

/// An exit that no `KVM_RUN` has completed yet, and the reply that `kvm_run` holds for it.
#[derive(Clone, Copy, Debug)]
struct Pending {
    exit: Exit,
    reply: Reply,
}

/// The state of a vCPU that is to continue on another host, without the values of its MSRs, which
/// [`Vcpu::host_read`] reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SavedVcpu {
    gprs: Gprs,
    privilege: Privilege,
    queued: Queued,
}

/// An error for a vCPU with a pending exit, which cannot be part of a saved state (S5.6). Complete
/// the exit with [`Vcpu::run_immediate_exit`] first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExitPending(pub Exit);

impl fmt::Display for ExitPending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Exit { index, access, .. } = self.0;
        write!(f, "the vCPU still has to complete a {access} of {index}")
    }
}

impl core::error::Error for ExitPending {}

/// A vCPU of a [`Vm`](crate::Vm), owned by the thread that runs it.
///
/// The vCPU keeps the VM's filter alive: the VM may be dropped first (S7).
pub struct Vcpu<R> {
    shared: Arc<Shared>,
    number: VcpuNumber,
    registers: R,
    gprs: Gprs,
    privilege: Privilege,
    single_step: SingleStep,
    pending: Option<Pending>,
    queued: Queued,
    intercepts: Intercepts,
    /// The number of `MSR_FILTER_CHANGED` requests that the vCPU has handled so far.
    seen: Changes,
}

impl<R: Registers> Vcpu<R> {
    pub(crate) fn new(shared: Arc<Shared>, number: VcpuNumber, registers: R) -> Self {
        let seen = shared.changes();
        Self {
            shared,
            number,
            registers,
            gprs: Gprs::RESET,
            privilege: Privilege::default(),
            single_step: SingleStep::default(),
            pending: None,
            queued: Queued::default(),
            intercepts: Intercepts::All,
            seen,
        }
    }

    /// The vCPU's number in the VM.
    #[must_use]
    pub const fn number(&self) -> VcpuNumber {
        self.number
    }

    /// The general registers, as `KVM_GET_REGS` returns them.
    #[must_use]
    pub const fn gprs(&self) -> Gprs {
        self.gprs
    }

    /// Handles `KVM_SET_REGS`.
    ///
    /// The call cancels a queued #GP, so that an exit can be rewound (S5.8). It leaves a pending
    /// exit as it is (S5.5).
    pub const fn set_gprs(&mut self, gprs: Gprs) {
        self.gprs = gprs;
        self.queued = Queued::Nothing;
    }

    /// Sets the privilege level of the guest's code.
    pub const fn set_privilege(&mut self, privilege: Privilege) {
        self.privilege = privilege;
    }

    /// Handles `KVM_SET_GUEST_DEBUG`.
    pub const fn set_single_step(&mut self, single_step: SingleStep) {
        self.single_step = single_step;
    }

    /// The exit that the next `KVM_RUN` completes, if one is pending.
    #[must_use]
    pub fn pending_exit(&self) -> Option<Exit> {
        self.pending.map(|pending| pending.exit)
    }

    /// Writes the reply to the pending exit into `kvm_run`, where the next `KVM_RUN` finds it.
    ///
    /// If this method is called more than once before the next `KVM_RUN`, the last reply counts.
    /// Without a pending exit the call has no effect.
    pub const fn reply(&mut self, reply: Reply) {
        if let Some(pending) = &mut self.pending {
            pending.reply = reply;
        }
    }

    /// Returns the decision of the VM's current filter on this access. The call takes a fixed
    /// number of steps, even while another thread sets a filter.
    #[must_use]
    pub fn decide(&self, index: MsrIndex, access: Access) -> Decision {
        self.shared.decide(self.number, index, access)
    }

    /// Reads one register as `KVM_GET_MSRS` does: the filter is not asked (S4).
    ///
    /// # Errors
    /// The fault with which the register refuses the read. In KVM the ioctl then returns the number
    /// of registers that it has read before this one.
    pub fn host_read(&mut self, index: MsrIndex) -> Result<u64, RegisterFault> {
        self.read(index, Origin::Host)
    }

    /// Writes one register as `KVM_SET_MSRS` does: the filter is not asked (S4).
    ///
    /// # Errors
    /// The fault with which the register refuses the write. In KVM the ioctl then returns the
    /// number of registers that it has written before this one.
    pub fn host_write(&mut self, index: MsrIndex, value: u64) -> Result<(), RegisterFault> {
        self.write(index, value, Origin::Host)
    }

    /// Resets the vCPU, by INIT or by the VMM: the guest starts again, with no exception queued.
    ///
    /// The VM's filter and reason mask stay in force (S10.4). A pending exit stays pending, and the
    /// next `KVM_RUN` completes it.
    pub const fn reset(&mut self) {
        self.gprs = Gprs::RESET;
        self.privilege = Privilege::Kernel;
        self.queued = Queued::Nothing;
    }

    /// Returns the state of this vCPU, with which another vCPU can continue.
    ///
    /// # Errors
    /// [`ExitPending`] if an exit is pending (S5.6).
    pub const fn save(&self) -> Result<SavedVcpu, ExitPending> {
        match self.pending {
            Some(pending) => Err(ExitPending(pending.exit)),
            None => Ok(SavedVcpu {
                gprs: self.gprs,
                privilege: self.privilege,
                queued: self.queued,
            }),
        }
    }

    /// Replaces the state of this vCPU by the saved state of another vCPU.
    ///
    /// # Errors
    /// [`ExitPending`] if this vCPU has a pending exit: the completion of the exit would change the
    /// restored state.
    pub const fn restore(&mut self, saved: SavedVcpu) -> Result<(), ExitPending> {
        if let Some(pending) = self.pending {
            return Err(ExitPending(pending.exit));
        }
        self.gprs = saved.gprs;
        self.privilege = saved.privilege;
        self.queued = saved.queued;
        Ok(())
    }

    /// Reads a register for a guest whose access left guest mode: the filter decides first, then
    /// the register is read (S5.1).
    fn guest_read(&mut self, index: MsrIndex) -> Result<u64, ExitReason> {
        self.ask(index, Access::Read)?;
        self.read(index, Origin::Guest)
            .map_err(|fault| ExitReason::of(fault, self.shared.revision()))
    }

    /// Writes a register for a guest whose access left guest mode: the filter decides first, then
    /// the register is written (S5.1).
    fn guest_write(&mut self, index: MsrIndex, value: u64) -> Result<(), ExitReason> {
        self.ask(index, Access::Write)?;
        self.write(index, value, Origin::Guest)
            .map_err(|fault| ExitReason::of(fault, self.shared.revision()))
    }

    fn ask(&self, index: MsrIndex, access: Access) -> Result<(), ExitReason> {
        match self.decide(index, access).verdict {
            Verdict::Allow => Ok(()),
            Verdict::Deny => Err(ExitReason::Filter),
        }
    }

    /// Reads a register. The host's `ignore_msrs` may turn a fault into the value 0 (S10.1).
    fn read(&mut self, index: MsrIndex, origin: Origin) -> Result<u64, RegisterFault> {
        self.registers
            .read(index, origin)
            .or_else(|fault| self.shared.ignore(fault).map(|()| 0))
    }

    fn write(&mut self, index: MsrIndex, value: u64, origin: Origin) -> Result<(), RegisterFault> {
        self.registers
            .write(index, value, origin)
            .or_else(|fault| self.shared.ignore(fault))
    }
}

impl<R> fmt::Debug for Vcpu<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Vcpu")
            .field("number", &self.number)
            .field("gprs", &self.gprs)
            .field("pending", &self.pending)
            .field("queued", &self.queued)
            .finish_non_exhaustive()
    }
}
