//! `KVM_RUN`: it completes a pending exit, enters the guest, executes instructions, and exits (S5).

use super::hardware::Intercept;
use super::{Gprs, Pending, Privilege, Queued, SingleStep, Vcpu};
use crate::exit::{Exit, ExitReason, Reply};
use crate::msr::Access;
use crate::registers::{Origin, Registers};
use crate::revision::Refused;

/// An instruction that accesses MSRs, two bytes long.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Instruction {
    /// `0f 32`: reads the MSR that ECX names into EDX:EAX.
    Rdmsr,
    /// `0f 30`: writes EDX:EAX to the MSR that ECX names.
    Wrmsr,
}

impl Instruction {
    /// The length of the instruction, in bytes.
    pub const LENGTH: u64 = 2;

    /// The direction of the access: RDMSR reads, WRMSR writes.
    #[must_use]
    pub const fn access(self) -> Access {
        match self {
            Self::Rdmsr => Access::Read,
            Self::Wrmsr => Access::Write,
        }
    }
}

/// The reason why the vCPU stopped.
///
/// KVM itself does not return to user space after an instruction, or on a #GP that the guest
/// handles. This model returns in both cases, so that its caller can look at the vCPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RunExit {
    /// The instruction is complete, and RIP is past it: the processor or KVM has executed the
    /// instruction, or KVM has completed the exit that the instruction had caused.
    Retired,
    /// The guest's handler was called for #GP(0), with this address on its stack (S5.7). RIP keeps
    /// the address, because the model has no handler.
    GeneralProtection {
        /// The address that the guest's handler finds on its stack.
        rip: u64,
    },
    /// `KVM_EXIT_X86_RDMSR` or `KVM_EXIT_X86_WRMSR`: RIP is at the instruction and no register has
    /// changed (S5.3). Call [`Vcpu::reply`], then run the vCPU again.
    Msr(Exit),
    /// `KVM_EXIT_DEBUG`: the instruction is complete, and single-step makes `KVM_RUN` return.
    Debug,
    /// `KVM_RUN` returned EINTR without entering the guest, because `immediate_exit` was set (S5.6).
    Interrupted,
}

/// The result of [`Vcpu::enter`]: of `KVM_RUN` up to the guest's next instruction.
pub enum Entry<'a, R> {
    /// The vCPU is in guest mode.
    Guest(GuestMode<'a, R>),
    /// The vCPU had to finish an exit or an exception first, with this outcome.
    Finished(RunExit),
}

/// A vCPU in guest mode. The vCPU does not see requests of KVM until it leaves guest mode (S7).
///
/// Dropping this value makes the vCPU leave guest mode, as a request that kicks the vCPU or any
/// interrupt does.
pub struct GuestMode<'a, R> {
    vcpu: &'a mut Vcpu<R>,
}

/// The result of one instruction that [`GuestMode::execute`] executed.
pub struct Executed<'a, R> {
    /// The outcome of the instruction.
    pub outcome: RunExit,
    /// The vCPU, if the hardware alone executed the instruction, without leaving guest mode.
    pub still_in_guest: Option<GuestMode<'a, R>>,
}

impl<R: Registers> Vcpu<R> {
    /// Runs the vCPU as `KVM_RUN` does, with `instruction` as the guest's instruction at RIP, and
    /// returns the first outcome.
    ///
    /// A pending exit is completed first (S5.4), and a queued #GP is delivered. If one of these two
    /// steps has an outcome, this call returns that outcome and does not execute `instruction`.
    pub fn run(&mut self, instruction: Instruction) -> RunExit {
        match self.enter() {
            Entry::Guest(guest) => guest.execute(instruction).outcome,
            Entry::Finished(outcome) => outcome,
        }
    }

    /// Runs `KVM_RUN` under `immediate_exit`: completes a pending exit and does not enter the guest
    /// (S5.6).
    ///
    /// Returns [`RunExit::Interrupted`], or [`RunExit::Debug`] if an exit is completed under
    /// single-step (S5.8).
    pub fn run_immediate_exit(&mut self) -> RunExit {
        match self.complete() {
            Some(RunExit::Debug) => RunExit::Debug,
            _ => RunExit::Interrupted,
        }
    }

    /// Runs `KVM_RUN` up to the guest's next instruction: completes a pending exit, handles
    /// requests, delivers a queued #GP.
    pub fn enter(&mut self) -> Entry<'_, R> {
        if let Some(outcome) = self.complete() {
            return Entry::Finished(outcome);
        }
        self.handle_requests();
        match core::mem::take(&mut self.queued) {
            Queued::Nothing => Entry::Guest(GuestMode { vcpu: self }),
            Queued::GeneralProtection => Entry::Finished(self.general_protection()),
        }
    }

    /// Completes a pending exit by its reply (S5.4, S5.5). Returns the outcome with which `KVM_RUN`
    /// ends, or `None` if `KVM_RUN` goes on.
    fn complete(&mut self) -> Option<RunExit> {
        let Pending { exit, reply } = self.pending.take()?;
        if reply.error == 0 {
            if exit.access == Access::Read {
                self.gprs = self.gprs.with_value(reply.data);
            }
            return Some(self.retire());
        }
        self.queued = Queued::GeneralProtection;
        match self.shared.revision().refused() {
            Refused::AtInstruction => None,
            Refused::PastInstruction => Some(self.retire()).filter(|exit| *exit == RunExit::Debug),
        }
    }

    /// Moves RIP past the instruction that is complete.
    const fn retire(&mut self) -> RunExit {
        self.gprs.rip = self.gprs.rip.wrapping_add(Instruction::LENGTH);
        match self.single_step {
            SingleStep::Off => RunExit::Retired,
            SingleStep::On => RunExit::Debug,
        }
    }

    const fn general_protection(&self) -> RunExit {
        RunExit::GeneralProtection { rip: self.gprs.rip }
    }

    /// Emulates an instruction that exited, as KVM does.
    fn emulate(&mut self, instruction: Instruction) -> RunExit {
        let index = self.gprs.index();
        let result = match instruction {
            Instruction::Rdmsr => self
                .guest_read(index)
                .map(|value| self.gprs = self.gprs.with_value(value)),
            Instruction::Wrmsr => self.guest_write(index, self.gprs.value()),
        };
        match result {
            Ok(()) => self.retire(),
            Err(reason) => self.refuse(instruction.access(), reason),
        }
    }

    /// Executes an instruction that does not exit, as the processor does: the filter is not asked,
    /// a fault has no exit reason, and the host's `ignore_msrs` has no effect.
    fn execute_natively(&mut self, instruction: Instruction) -> RunExit {
        let index = self.gprs.index();
        let result = match instruction {
            Instruction::Rdmsr => self
                .registers
                .read(index, Origin::Guest)
                .map(|value| self.gprs = self.gprs.with_value(value)),
            Instruction::Wrmsr => {
                let value = self.gprs.value();
                self.registers.write(index, value, Origin::Guest)
            }
        };
        match result {
            Ok(()) => self.retire(),
            Err(_) => self.general_protection(),
        }
    }

    /// Refuses a failed access. The access exits if its reason is in the mask, else the guest gets
    /// #GP. KVM does not report the failure with any other reason (S5.2).
    fn refuse(&mut self, access: Access, reason: ExitReason) -> RunExit {
        let revision = self.shared.revision();
        if !self.shared.reasons().contains(revision, reason) {
            return self.general_protection();
        }
        let exit = Exit {
            index: self.gprs.index(),
            access,
            data: match access {
                Access::Read => 0,
                Access::Write => self.gprs.value(),
            },
            reason,
        };
        let reply = Reply::unanswered(&exit);
        self.pending = Some(Pending { exit, reply });
        RunExit::Msr(exit)
    }
}

impl<'a, R: Registers> GuestMode<'a, R> {
    /// Sets the general registers, as guest instructions between two MSR accesses do.
    pub const fn set_gprs(&mut self, gprs: Gprs) {
        self.vcpu.gprs = gprs;
    }

    /// Executes the instruction at RIP.
    #[must_use]
    pub fn execute(self, instruction: Instruction) -> Executed<'a, R> {
        let Self { vcpu } = self;
        let handled = match vcpu.privilege {
            Privilege::User => Handled::Natively(vcpu.general_protection()),
            Privilege::Kernel => {
                match vcpu.intercepts.of(vcpu.gprs.index(), instruction.access()) {
                    Intercept::Passes => Handled::Natively(vcpu.execute_natively(instruction)),
                    Intercept::Exits => Handled::ByKvm(vcpu.emulate(instruction)),
                }
            }
        };
        match handled {
            Handled::ByKvm(outcome) | Handled::Natively(outcome @ RunExit::Debug) => Executed {
                outcome,
                still_in_guest: None,
            },
            Handled::Natively(outcome) => Executed {
                outcome,
                still_in_guest: Some(Self { vcpu }),
            },
        }
    }
}

/// The result of an instruction: its executor, the processor or KVM, and its outcome.
enum Handled {
    /// The processor executed the instruction.
    Natively(RunExit),
    /// KVM executed the instruction, so the vCPU left guest mode.
    ByKvm(RunExit),
}
