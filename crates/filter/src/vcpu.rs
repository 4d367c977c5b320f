//! A vCPU: the little of one that RDMSR and WRMSR can see, and what `KVM_RUN` does with it.

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
    /// The lower half of the value, in its lower 32 bits.
    pub rax: u64,
    /// The index, in its lower 32 bits.
    pub rcx: u64,
    /// The upper half of the value, in its lower 32 bits.
    pub rdx: u64,
    /// The address of the next instruction.
    pub rip: u64,
}

impl Gprs {
    /// Where a reset vCPU starts, within its code segment (SDM volume 3, "Processor State After
    /// Reset").
    pub const RESET: Self = Self {
        rax: 0,
        rcx: 0,
        rdx: 0,
        rip: 0xfff0,
    };

    /// The register that ECX names.
    #[must_use]
    pub const fn index(&self) -> MsrIndex {
        MsrIndex::new(low(self.rcx))
    }

    /// EDX:EAX.
    #[must_use]
    pub const fn value(&self) -> u64 {
        (low(self.rdx) as u64) << 32 | low(self.rax) as u64
    }

    /// These with a value in EDX:EAX, the upper halves of both registers cleared, as RDMSR does.
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

/// What the guest's code is allowed to do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Privilege {
    /// CPL 0.
    #[default]
    Kernel,
    /// CPL 1 to 3: RDMSR and WRMSR are #GP before any filter (S4).
    User,
}

/// `KVM_GUESTDBG_SINGLESTEP`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum SingleStep {
    /// The guest runs on after an instruction.
    #[default]
    Off,
    /// `KVM_RUN` returns after each one.
    On,
}

/// An exception that the next entry delivers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Queued {
    #[default]
    Nothing,
    GeneralProtection,
}

/// An exit that no `KVM_RUN` has completed yet, and the answer as it stands in `kvm_run`.
#[derive(Clone, Copy, Debug)]
struct Pending {
    exit: Exit,
    reply: Reply,
}

/// What a vCPU takes to another host, its MSRs aside: those are read with [`Vcpu::host_read`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SavedVcpu {
    gprs: Gprs,
    privilege: Privilege,
    queued: Queued,
}

/// The vCPU has an exit pending, whose completion is no state that could be saved (S5.6). Complete
/// it with [`Vcpu::run_immediate_exit`] first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExitPending(pub Exit);

impl fmt::Display for ExitPending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Exit { index, access, .. } = self.0;
        write!(f, "a {access} of {index} still waits for its completion")
    }
}

impl core::error::Error for ExitPending {}

/// A vCPU of a [`Vm`](crate::Vm), owned by the thread that runs it.
///
/// It keeps its VM's filter alive: dropping the VM first is fine (S7).
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
    /// The requests handled so far.
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

    /// Its place in the VM.
    #[must_use]
    pub const fn number(&self) -> VcpuNumber {
        self.number
    }

    /// `KVM_GET_REGS`.
    #[must_use]
    pub const fn gprs(&self) -> Gprs {
        self.gprs
    }

    /// `KVM_SET_REGS`. Cancels a queued #GP, so that an exit can be rewound (S5.8); does not touch
    /// a pending exit (S5.5).
    pub const fn set_gprs(&mut self, gprs: Gprs) {
        self.gprs = gprs;
        self.queued = Queued::Nothing;
    }

    /// Puts the guest's code at CPL 0 or above it.
    pub const fn set_privilege(&mut self, privilege: Privilege) {
        self.privilege = privilege;
    }

    /// `KVM_SET_GUEST_DEBUG`.
    pub const fn set_single_step(&mut self, single_step: SingleStep) {
        self.single_step = single_step;
    }

    /// The exit that the next `KVM_RUN` completes.
    #[must_use]
    pub fn pending_exit(&self) -> Option<Exit> {
        self.pending.map(|pending| pending.exit)
    }

    /// Writes the answer to the pending exit into `kvm_run`, where the next `KVM_RUN` finds it; the
    /// last one counts. Without a pending exit nobody reads it.
    pub const fn reply(&mut self, reply: Reply) {
        if let Some(pending) = &mut self.pending {
            pending.reply = reply;
        }
    }

    /// What the VM's filter says of this access now. A fixed number of steps, whatever setters do.
    #[must_use]
    pub fn decide(&self, index: MsrIndex, access: Access) -> Decision {
        self.shared.decide(self.number, index, access)
    }

    /// `KVM_GET_MSRS` of one register: not filtered (S4).
    ///
    /// # Errors
    /// The register's own. The ioctl returns how many it read before.
    pub fn host_read(&mut self, index: MsrIndex) -> Result<u64, RegisterFault> {
        self.read(index, Origin::Host)
    }

    /// `KVM_SET_MSRS` of one register: not filtered (S4).
    ///
    /// # Errors
    /// The register's own. The ioctl returns how many it wrote before.
    pub fn host_write(&mut self, index: MsrIndex, value: u64) -> Result<(), RegisterFault> {
        self.write(index, value, Origin::Host)
    }

    /// INIT, or a reset by the VMM: the guest starts anew, with no exception queued. The VM's
    /// filter and mask stay (S10.4), so does a pending exit, which the next `KVM_RUN` still
    /// completes.
    pub const fn reset(&mut self) {
        self.gprs = Gprs::RESET;
        self.privilege = Privilege::Kernel;
        self.queued = Queued::Nothing;
    }

    /// What another vCPU needs to go on where this one stands.
    ///
    /// # Errors
    /// An exit is pending (S5.6).
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

    /// Goes on where another vCPU stood.
    ///
    /// # Errors
    /// An exit is pending here, which would be completed on top of the restored state.
    pub const fn restore(&mut self, saved: SavedVcpu) -> Result<(), ExitPending> {
        if let Some(pending) = self.pending {
            return Err(ExitPending(pending.exit));
        }
        self.gprs = saved.gprs;
        self.privilege = saved.privilege;
        self.queued = saved.queued;
        Ok(())
    }

    /// A guest's read, past the hardware's intercepts: the filter first, then the register (S5.1).
    fn guest_read(&mut self, index: MsrIndex) -> Result<u64, ExitReason> {
        self.ask(index, Access::Read)?;
        self.read(index, Origin::Guest)
            .map_err(|fault| ExitReason::of(fault, self.shared.revision()))
    }

    /// A guest's write, likewise.
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

    /// The register, under the host's `ignore_msrs` (S10.1).
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
