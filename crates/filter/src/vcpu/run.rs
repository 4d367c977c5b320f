//! `KVM_RUN`: complete, enter, execute, exit (S5).

use super::hardware::Intercept;
use super::{Gprs, Pending, Privilege, Queued, SingleStep, Vcpu};
use crate::exit::{Exit, ExitReason, Reply};
use crate::msr::Access;
use crate::registers::{Origin, Registers};
use crate::revision::Refused;

/// An instruction that accesses MSRs, two bytes long.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Instruction {
    /// `0f 32`: EDX:EAX = the register that ECX names.
    Rdmsr,
    /// `0f 30`: the other way.
    Wrmsr,
}

impl Instruction {
    /// Its length in bytes.
    pub const LENGTH: u64 = 2;

    /// Which way it goes.
    #[must_use]
    pub const fn access(self) -> Access {
        match self {
            Self::Rdmsr => Access::Read,
            Self::Wrmsr => Access::Write,
        }
    }
}

/// Why the vCPU stopped.
///
/// KVM itself would not return to user space after an instruction, nor on a #GP that the guest
/// handles; the model does, so that its caller can look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RunExit {
    /// The instruction is done and RIP past it, be it by KVM or by the completion of an exit.
    Retired,
    /// The guest's handler was called for #GP(0) and finds this address on its stack (S5.7). RIP is
    /// left there, for the model has no handler.
    GeneralProtection {
        /// The address.
        rip: u64,
    },
    /// `KVM_EXIT_X86_RDMSR` or `KVM_EXIT_X86_WRMSR`: RIP is at the instruction and no register has
    /// changed (S5.3). [`Vcpu::reply`], then run again.
    Msr(Exit),
    /// `KVM_EXIT_DEBUG`: as `Retired`, under single-step.
    Debug,
    /// EINTR: `immediate_exit` was set (S5.6).
    Interrupted,
}

/// How far a `KVM_RUN` came before it executed anything.
pub enum Entry<'a, R> {
    /// The vCPU is in guest mode.
    Guest(GuestMode<'a, R>),
    /// There was something to finish first, and this came of it.
    Finished(RunExit),
}

/// A vCPU in guest mode: requests made meanwhile are not seen until it leaves (S7).
///
/// Dropping this is leaving: what the kick of a request, or any interrupt, does.
pub struct GuestMode<'a, R> {
    vcpu: &'a mut Vcpu<R>,
}

/// What one instruction did.
pub struct Executed<'a, R> {
    /// Its outcome.
    pub outcome: RunExit,
    /// The vCPU, if the hardware alone executed the instruction and guest mode was never left.
    pub still_in_guest: Option<GuestMode<'a, R>>,
}

impl<R: Registers> Vcpu<R> {
    /// `KVM_RUN` up to the next thing worth a look, where `instruction` is what the guest has at
    /// RIP.
    ///
    /// A pending exit is completed first (S5.4), and a queued #GP delivered; then that is what is
    /// returned, and `instruction` does not execute.
    pub fn run(&mut self, instruction: Instruction) -> RunExit {
        match self.enter() {
            Entry::Guest(guest) => guest.execute(instruction).outcome,
            Entry::Finished(outcome) => outcome,
        }
    }

    /// `KVM_RUN` under `immediate_exit`: completes a pending exit and enters no guest (S5.6). It
    /// gives `Interrupted`, or `Debug` if a completion under single-step comes first (S5.8).
    pub fn run_immediate_exit(&mut self) -> RunExit {
        match self.complete() {
            Some(RunExit::Debug) => RunExit::Debug,
            _ => RunExit::Interrupted,
        }
    }

    /// `KVM_RUN` up to the guest's next instruction: completes a pending exit, handles requests,
    /// delivers a queued #GP.
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

    /// Completes a pending exit as its reply says (S5.4, S5.5). What it comes to, unless the guest
    /// goes straight on.
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

    /// Moves past the instruction.
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

    /// What KVM does with an instruction that exited.
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

    /// What the processor does with an instruction that does not exit: no filter is asked, no
    /// reason given, and the host's `ignore_msrs` does not come into it.
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

    /// What comes of a failed access: the one reason exits, or else it is #GP; no other reason is
    /// tried (S5.2).
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
    /// What the guest's other instructions do to its registers.
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

/// Who saw to an instruction.
enum Handled {
    /// The processor.
    Natively(RunExit),
    /// KVM, for which the vCPU left guest mode.
    ByKvm(RunExit),
}
