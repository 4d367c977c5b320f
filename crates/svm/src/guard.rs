//! The answer to an MSR access that left the guest: the one place in which the hypervisor decides.
//!
//! The filter decides first ([`Vcpu::run`], as KVM does), then the processor's register, and what is refused goes
//! to the responder of the policy's program, which in KVM is the user-space part.

use alloc::collections::BTreeSet;
use alloc::sync::Arc;
use core::fmt;

use msrgate_filter::intercept::SvmMap;
use msrgate_filter::{
    Access, Exit, ExitReason, Filter, ForeignFilter, Gprs, Hardware, Instruction, MsrIndex,
    ReasonMask, RegisterFault, Registers, Reply, Revision, RunExit, Vcpu, Vm,
};
use msrgate_program::answer::{
    Answer, Carried, Disposition, Forwarded, Responder, ResponderError, Response, VcpuState,
};
use msrgate_program::{Action, CompileError, Cpu, CpuidBit, DecidedBy, Program};

use crate::msrs;

/// An error for a program that the hypervisor cannot enforce.
#[derive(Debug)]
pub enum GuardError {
    /// The program cannot answer on this processor.
    Responder(ResponderError),
    /// The program's rules do not fit a filter.
    Filter(CompileError),
    /// The filter is for another revision of KVM's filter than the guard's.
    Foreign(ForeignFilter),
    /// The program asks a handler or a device, and the hypervisor has none.
    HasNoAnswer,
}

impl fmt::Display for GuardError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Responder(error) => write!(f, "the program cannot be used: {error}"),
            Self::Filter(error) => write!(f, "the program has no filter: {error}"),
            Self::Foreign(error) => write!(f, "{error}"),
            Self::HasNoAnswer => f.write_str(
                "the program names a handler or a device, and the hypervisor has neither; use entries without them",
            ),
        }
    }
}

impl core::error::Error for GuardError {}

/// The index of a made-up MSR, 0x4d535247 ("MSRG"): a policy with an entry that allows writes of it lets the guest ask for
/// the replacement of the program.
pub const REPLACE: MsrIndex = MsrIndex::new(0x4d53_5247);

/// The guard of the whole machine: the filter and the program that all processors obey.
pub struct Guard {
    vm: Vm,
    responder: Arc<Responder>,
    /// The kinds of accesses of which an event was written because they were the first under the current program:
    /// MSR, direction, and true for refused ones.
    seen: BTreeSet<(MsrIndex, Access, bool)>,
}

/// The guard of one processor.
pub struct ProcessorGuard<R> {
    vcpu: Vcpu<R>,
    /// The responder that `state` belongs to.
    responder: Arc<Responder>,
    state: VcpuState,
}

/// The effect of an access on the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// The instruction is complete, with these registers.
    Complete(Gprs),
    /// The guest gets #GP(0) at the instruction.
    Fault,
    /// The policy ends the machine.
    Kill,
}

/// An access that becomes an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    /// The access, with the reason for which it was refused or handed to the responder.
    pub exit: Exit,
    /// The disposition of the access.
    pub disposition: Disposition,
}

impl Guard {
    /// Creates the guard from a program, for this processor.
    ///
    /// # Errors
    /// [`GuardError`]: the program has answers that the hypervisor cannot give.
    pub fn new(program: Arc<Program>, cpu: &Cpu) -> Result<Self, GuardError> {
        let vm = Vm::new(Revision::Mainline);
        // The responder gets each access that fails, so that it can log the access.
        vm.set_reasons(ReasonMask::of(Revision::Mainline, &ExitReason::ALL));
        let responder = prepare(&vm, program, cpu)?;
        Ok(Self {
            vm,
            responder,
            seen: BTreeSet::new(),
        })
    }

    /// Replaces the program. Each processor takes it by [`ProcessorGuard::enter`] before it enters the guest
    /// again.
    ///
    /// # Errors
    /// [`GuardError`]. The old program then stays in force.
    pub fn replace(&mut self, program: Arc<Program>, cpu: &Cpu) -> Result<(), GuardError> {
        self.responder = prepare(&self.vm, program, cpu)?;
        self.seen.clear();
        Ok(())
    }

    /// Returns true if the guest may ask for a replacement of the program: the current program then allows
    /// writes of the made-up MSR [`REPLACE`] by an entry. A default action is not enough.
    #[must_use]
    pub fn may_be_replaced(&self) -> bool {
        let rule = self.responder.variant().rule(REPLACE, Access::Write);
        *rule.action == Action::Allow && matches!(rule.by, DecidedBy::Entry(..))
    }

    /// Creates the guard of one more processor, whose registers are `registers`. `has` returns true for the
    /// CPUID bits that the processor has.
    pub fn processor<R: Registers>(
        &self,
        registers: R,
        has: impl Fn(&CpuidBit) -> bool,
    ) -> ProcessorGuard<R> {
        let mut vcpu = self.vm.create_vcpu(registers);
        vcpu.pass_through(Hardware::Svm, msrs::wants);
        ProcessorGuard {
            vcpu,
            responder: Arc::clone(&self.responder),
            state: VcpuState::new(&self.responder, has),
        }
    }
}

/// Prepares a program, and sets its filter in the VM. After an error the VM keeps its filter.
fn prepare(vm: &Vm, program: Arc<Program>, cpu: &Cpu) -> Result<Arc<Responder>, GuardError> {
    let responder = Responder::new(program, cpu).map_err(GuardError::Responder)?;
    if responder.handlers().next().is_some() || responder.devices().next().is_some() {
        return Err(GuardError::HasNoAnswer);
    }
    vm.set_filter(&filter(&responder)?)
        .map_err(GuardError::Foreign)?;
    Ok(Arc::new(responder))
}

/// Packs the filter of a responder: accesses that are logged exit, if there are ranges enough for them.
fn filter(responder: &Responder) -> Result<Filter, GuardError> {
    let packed = responder.verdicts(&[]).pack();
    packed
        .or_else(|_| responder.fewest_verdicts(&[]).pack())
        .map_err(GuardError::Filter)
}

impl<R: Registers> ProcessorGuard<R> {
    /// Takes the guard's current program, and brings the processor's MSR permission map up to date. The
    /// hypervisor calls this before each entry into the guest. Emulated registers and pins that both
    /// programs have keep their values.
    pub fn enter(&mut self, guard: &Guard) {
        if !Arc::ptr_eq(&self.responder, &guard.responder) {
            self.state = self.state.under(&self.responder, &guard.responder);
            self.responder = Arc::clone(&guard.responder);
        }
        // The vCPU handles its request here (S6.4), and leaves guest mode at once: the hypervisor itself
        // enters the guest.
        let _entered = self.vcpu.enter();
    }

    /// The processor's MSR permission map, whose address never changes.
    #[must_use]
    pub fn map(&self) -> &SvmMap {
        const EXIT_ALL: &SvmMap = &SvmMap::exit_all();
        self.vcpu.svm_map().unwrap_or(EXIT_ALL)
    }

    /// Carries out one access of the guest that left guest mode. `gprs` are the guest's registers at the
    /// instruction. Returns the effect, and the event if the access becomes one.
    pub fn access(
        &mut self,
        guard: &mut Guard,
        gprs: Gprs,
        instruction: Instruction,
    ) -> (Effect, Option<Event>) {
        self.vcpu.set_gprs(gprs);
        let exit = match self.vcpu.run(instruction) {
            RunExit::Msr(exit) => exit,
            RunExit::Retired => return (Effect::Complete(self.vcpu.gprs()), None),
            RunExit::GeneralProtection { .. } | RunExit::Debug | RunExit::Interrupted => {
                return (Effect::Fault, None);
            }
        };
        let responder = Arc::clone(&self.responder);
        let answer = responder.respond(&mut self.state, &exit);
        let (reply, disposition, exit) = self.carry_out(&responder, &answer, exit);
        let is_first = || {
            guard
                .seen
                .insert((exit.index, exit.access, disposition.is_refusal()))
        };
        let event = responder
            .is_event(&exit, &answer, disposition, is_first)
            .then_some(Event { exit, disposition });
        self.vcpu.reply(reply.unwrap_or(Reply::FAULT));
        let effect = match self.vcpu.run(instruction) {
            _ if reply.is_none() => Effect::Kill,
            RunExit::Retired => Effect::Complete(self.vcpu.gprs()),
            _ => Effect::Fault,
        };
        (effect, event)
    }

    /// Carries out the responder's answer to `exit`. Returns the reply, or `None` to end the machine; the
    /// final disposition; and the exit with its final reason.
    fn carry_out(
        &mut self,
        responder: &Responder,
        answer: &Answer<'_>,
        exit: Exit,
    ) -> (Option<Reply>, Disposition, Exit) {
        match answer.response {
            Response::Reply(reply) => (Some(reply), answer.disposition, exit),
            Response::Forward(forwarded) => {
                let (reply, disposition) = self.forward(&forwarded);
                (Some(reply), disposition, exit)
            }
            // In KVM the filter is opened, and the guest executes the access again. Here the hypervisor
            // carries the access out at once, and the next one exits too.
            Response::Rewind | Response::Open => match self.reach(&exit) {
                Ok(reply) => (Some(reply), answer.disposition, exit),
                Err(fault) => self.refused_by_register(responder, exit, fault),
            },
            Response::Kill => (None, answer.disposition, exit),
            // No program with these answers gets here; see `prepare`.
            _ => (Some(Reply::FAULT), Disposition::Denied, exit),
        }
    }

    fn reach(&mut self, exit: &Exit) -> Result<Reply, RegisterFault> {
        match exit.access {
            Access::Read => self.vcpu.host_read(exit.index).map(Reply::value),
            Access::Write => self
                .vcpu
                .host_write(exit.index, exit.data)
                .map(|()| Reply::DONE),
        }
    }

    /// Answers an access that the policy allows and that the register itself refuses.
    fn refused_by_register(
        &mut self,
        responder: &Responder,
        exit: Exit,
        fault: RegisterFault,
    ) -> (Option<Reply>, Disposition, Exit) {
        let reason = match fault {
            RegisterFault::Unknown => ExitReason::Unknown,
            RegisterFault::Invalid => ExitReason::Invalid,
        };
        let exit = Exit { reason, ..exit };
        let again = responder.respond(&mut self.state, &exit);
        match again.response {
            Response::Reply(reply) => (Some(reply), again.disposition, exit),
            _ => (Some(Reply::FAULT), Disposition::Denied, exit),
        }
    }

    fn forward(&mut self, forwarded: &Forwarded) -> (Reply, Disposition) {
        const REFUSED: (Reply, Disposition) = (Reply::FAULT, Disposition::Denied);
        let index = forwarded.index();
        let current = if forwarded.needs_current() {
            match self.vcpu.host_read(index) {
                Ok(current) => current,
                Err(_) => return REFUSED,
            }
        } else {
            0
        };
        match forwarded.carry(current) {
            (Carried::Value(value), disposition) => (Reply::value(value), disposition),
            (Carried::Set(value), disposition) => match self.vcpu.host_write(index, value) {
                Ok(()) => {
                    self.state.carried(forwarded);
                    (Reply::DONE, disposition)
                }
                Err(_) => REFUSED,
            },
            (Carried::Fault, disposition) => (Reply::FAULT, disposition),
        }
    }
}

#[cfg(test)]
mod tests;
