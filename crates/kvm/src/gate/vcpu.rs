//! One vCPU's part of a gate, owned by the vCPU's thread: from its exits to its answers.

use std::fmt;
use std::sync::Arc;

use kvm_bindings::kvm_cpuid_entry2;
use msrgate_filter::{Exit, MsrIndex, Reply};
use msrgate_program::answer::{Responder, Saved};

use super::bound::{Beginning, Bound, Place};
use super::cpuid::CpuidLeaves;
use super::device::Through;
use super::error::{AnswerError, StateError, VcpuError};
use super::events::Rip;
use super::exit::Answering;
use super::handle::VcpuHandle;
use super::id::VcpuId;
use super::outcome::{HandlerRequest, Outcome};
use super::port::{KvmPort, Port};
use super::published::Generation;
use super::shared::Past;
use crate::sys::calls::Taken;

/// No program's number.
const UNSETTLED: u64 = u64::MAX;

/// One vCPU's part of a gate.
///
/// It holds what the guest has pinned and written on this vCPU, so a vCPU keeps its own for as long as it
/// may run, and drops it before the vCPU's page is unmapped. The calls, in order: [`Gate::vcpu`](super::Gate::vcpu), with the CPUID that `KVM_SET_CPUID2` gets;
/// `KVM_SET_CPUID2`; [`reset`](Self::reset), or [`restore`](Self::restore) for a vCPU that comes from
/// elsewhere; then [`answer`](Self::answer) after each `KVM_RUN` that returns with an MSR exit, and
/// [`finish`](Self::finish) where that says so, before the next `KVM_RUN`. A call out of this order is an
/// error, and a #GP for the guest, but for one: an exit for which `answer` is never called is the kernel's
/// own to complete. The guest then reads 0, or its write is dropped without a word.
///
/// Each call that takes a vCPU takes `kvm_ioctls::VcpuFd`, or a [`RawVcpu`](super::RawVcpu) of any other binding.
///
/// It is the process's that made it: in a forked child, whose vCPU it is not, it must not be used.
///
/// It is `Send`. It is not `Sync`, since a VMM's [`Device`](super::Device) need not be; every call but [`Self::id`]
/// takes `&mut self`.
#[must_use = "without it the vCPU's exits have no answer"]
pub struct VcpuGate {
    /// The vCPU that it answers for.
    bound: Bound,
    /// The program that this vCPU last answered by.
    program: Generation<Responder>,
    /// Its number, or [`UNSETTLED`] as long as it may be withdrawn.
    settled: u64,
    own: Answering,
}

impl fmt::Debug for VcpuGate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VcpuGate")
            .field("id", &self.id())
            .finish_non_exhaustive()
    }
}

impl Drop for VcpuGate {
    fn drop(&mut self) {
        // Of an exit that the VMM's own code has not answered nothing else would be told.
        self.own.finished(Reply::FAULT);
        if let Some(place) = self.bound.tied_to() {
            self.own.shared.untie(place);
        }
    }
}

impl VcpuGate {
    pub(super) const fn new(program: Generation<Responder>, own: Answering) -> Self {
        Self {
            bound: Bound::nowhere(),
            settled: program.number,
            program,
            own,
        }
    }

    /// The vCPU's number.
    #[must_use]
    pub const fn id(&self) -> VcpuId {
        self.own.id
    }

    /// Answers the MSR exit with which the vCPU's `KVM_RUN` has just returned. Call it before the next
    /// `KVM_RUN`, also before one under `immediate_exit`, for each such exit: a `KVM_RUN` completes the exit as
    /// done, with 0 for a read, and this would come too late without a word.
    ///
    /// # Errors
    /// There is no such exit, `vcpu` was not [reset](Self::reset) or is another one, or was given another
    /// CPUID after that, or a call that the answer needs fails. The guest gets #GP, if the vCPU is run on.
    pub fn answer<V: VcpuHandle>(&mut self, vcpu: &mut V) -> Result<Outcome, AnswerError> {
        let mut port = port(vcpu);
        if !V::ARE_ONE && !self.bound.is_running(port.place()) {
            self.first_exit(&mut port)?;
        }
        self.answer_at(&mut port)
    }

    /// Gives the answer of the VMM's own code to the exit that [`Outcome::Handler`] was about. Call it
    /// before the vCPU runs again: without, the guest gets #GP. The event and the count of the access say
    /// which it was: handled, or denied.
    ///
    /// # Errors
    /// The vCPU has been run, [reset](Self::reset) or answered since, or `asked` or `vcpu` is another one's.
    /// The guest has had its #GP, or gets it.
    #[expect(clippy::needless_pass_by_value, reason = "an exit is answered once")]
    pub fn finish(
        &mut self,
        vcpu: &mut impl VcpuHandle,
        asked: HandlerRequest,
        reply: Reply,
    ) -> Result<(), AnswerError> {
        self.finish_at(&mut port(vcpu), &asked, reply)
    }

    /// The vCPU is new, or is reset by INIT or a reboot: registers hold what they hold at reset,
    /// nothing is pinned, devices begin anew. Call it before the vCPU first runs, after
    /// `KVM_SET_CPUID2`, and at each reset. An exit that KVM has not completed is forgotten: it would
    /// move RIP and write to registers of the vCPU that begins anew.
    ///
    /// The first one, or the first [`Self::restore`], ties this to `vcpu`, by its file descriptor and its
    /// shared page: from then on it answers for no other.
    ///
    /// # Errors
    /// `vcpu` is another one than the first time, or has another part of the gate, or has not run since
    /// [`Self::restore`], whose pins and registers would be lost (a `KVM_RUN` under `immediate_exit` counts as
    /// running): then nothing has changed. Or it has another CPUID than
    /// [`Gate::vcpu`](super::Gate::vcpu) was given, or none yet, or a call on it fails: then it counts as
    /// not reset, until this or [`Self::restore`] succeeds.
    pub fn reset(&mut self, vcpu: &mut impl VcpuHandle) -> Result<(), AnswerError> {
        self.reset_at(&mut port(vcpu))
    }

    /// The VMM has written an MSR of this vCPU by `KVM_SET_MSRS`, as one does that resets its guest:
    /// it is no longer pinned, and if it is emulated it holds what it holds at reset.
    ///
    /// # Errors
    /// `vcpu` was not [reset](Self::reset), or is another one, or has not run since [`Self::restore`], whose
    /// pin and register would be lost. Nothing has changed.
    pub fn msr_set_by_host(
        &mut self,
        vcpu: &mut impl VcpuHandle,
        index: MsrIndex,
    ) -> Result<(), AnswerError> {
        self.msr_set_by_host_at(&port(vcpu), index)
    }

    /// The vCPU's emulated registers, pins and devices, for a snapshot or a migration. An answer
    /// that KVM has not taken yet is completed first (S5.6), so save the vCPU's registers after this.
    /// It waits for a [`Gate::replace`](super::Gate::replace) that is under way, so that the state is of
    /// a program that stays. Where a debugger steps the vCPU, `KVM_EXIT_DEBUG` may be in `kvm_run` after
    /// this: that is the step over the completed access.
    ///
    /// # Errors
    /// The last exit has not been [answered](Self::answer): KVM would complete it as if the policy
    /// let it through. `vcpu` was not [reset](Self::reset), or is another one. Or `KVM_RUN` under
    /// `immediate_exit` fails.
    pub fn save(&mut self, vcpu: &mut impl VcpuHandle) -> Result<Vec<u8>, StateError> {
        self.save_at(&mut port(vcpu))
    }

    /// Takes over a state that [`Self::save`] gave, perhaps of another host. It
    /// stands for the first [`Self::reset`], and may come after one. An exit that KVM has not completed
    /// is forgotten, as there: on a vCPU that has run, call it before `KVM_SET_VCPU_EVENTS`. Until the vCPU
    /// has run, [`Self::reset`] and [`Self::msr_set_by_host`] are errors: they would undo this. As
    /// [`Self::save`], it waits for a replacement that is under way.
    ///
    /// # Errors
    /// The bytes are not a saved vCPU state, or name a register, pin or device that the program does not
    /// have; or `vcpu` is another one than the first time, or has another part of the gate, or another CPUID than
    /// [`Gate::vcpu`](super::Gate::vcpu) was given, or none yet. Nothing has been restored then, and an exit that
    /// waits still does. Or a call fails on the vCPU or of a device: then the vCPU counts as not reset, until this
    /// or [`Self::reset`] succeeds.
    pub fn restore(&mut self, vcpu: &mut impl VcpuHandle, saved: &[u8]) -> Result<(), StateError> {
        self.restore_at(&mut port(vcpu), saved)
    }

    /// The values of registers that KVM holds for the guest, for a migration:
    /// [`Gate::migration_list`](super::Gate::migration_list) or
    /// [`tight_migration_list`](super::Gate::tight_migration_list) says which. Those that this vCPU
    /// does not have are left out. As [`Self::save`], it completes an answer that KVM has not taken yet.
    ///
    /// # Errors
    /// As [`Self::save`], or `KVM_GET_MSRS` fails.
    pub fn capture_registers(
        &mut self,
        vcpu: &mut impl VcpuHandle,
        list: &[MsrIndex],
    ) -> Result<Vec<(MsrIndex, u64)>, StateError> {
        let port = &mut port(vcpu);
        self.come_to_rest(port)?;
        let mut values = Vec::with_capacity(list.len());
        for &index in list {
            values.extend(port.register(index)?.map(|value| (index, value)));
        }
        Ok(values)
    }

    /// Sets what [`Self::capture_registers`] gave, perhaps of another host. No pin is released, so that it may
    /// come before [`Self::restore`] or, if no device of the policy shows something in one of them, after it. From then on migration lists are whole: KVM may hold what another
    /// program let the guest turn on.
    ///
    /// # Errors
    /// KVM does not take a value: then those before it in the list are set, and those after it are not. Or
    /// `vcpu` was neither reset nor restored, or is another one.
    pub fn restore_registers(
        &mut self,
        vcpu: &mut impl VcpuHandle,
        values: &[(MsrIndex, u64)],
    ) -> Result<(), StateError> {
        let port = &mut port(vcpu);
        self.bound.check(self.id(), port.place())?;
        self.own.shared.lock().past = Past::Other;
        for &(index, value) in values {
            if port.set_register(index, value)? == Taken::No {
                return Err(StateError::Register { index, value });
            }
        }
        Ok(())
    }

    pub(super) fn restore_at(
        &mut self,
        port: &mut impl Port,
        saved: &[u8],
    ) -> Result<(), StateError> {
        let saved = Saved::decode(saved)?;
        self.bound.is_open_to(self.id(), port.place())?;
        self.check_cpuid(port.cpuid()?)?;
        self.tie(port.place())?;
        self.follow_for_good();
        let mut state = self.own.state.clone();
        state.restore(&self.program.thing, &saved)?;
        self.own.devices.restore(&saved)?;
        self.bound.begin();
        self.own.state = state;
        self.own.shared.lock().past = Past::Other;
        // Not before: it runs the vCPU, and a refused restore leaves all as it is.
        port.forget()?;
        self.own.finished(Reply::FAULT);
        if self.own.shared.options.events.rip == Rip::Shown {
            port.ask_for_registers();
        }
        let mut machine = Through {
            port,
            memory: self.own.shared.options.memory.as_deref(),
        };
        for device in self.own.devices.not_in(&saved) {
            device.reset(&mut machine)?;
        }
        // The guest reads the revision from a register of KVM's, which is the other host's no more.
        if let Some(microcode) = &self.own.devices.microcode {
            microcode.show(&mut Through { port, memory: None })?;
        }
        self.bound.done(port.place(), Beginning::Restore);
        port.note_restored();
        Ok(())
    }

    /// Ties this to the vCPU at `place`, if it is tied to none.
    fn tie(&mut self, place: Place) -> Result<(), VcpuError> {
        let before = self.bound.tied_to();
        // After a call that failed it may be another vCPU, or the same with the right file descriptor.
        if before.is_none_or(|before| before.page() != place.page()) {
            self.own.shared.tie(self.id(), place)?;
            if let Some(before) = before {
                self.own.shared.untie(before);
            }
        }
        self.bound.tie(place);
        Ok(())
    }

    /// Checks that nothing is lost that was restored for a vCPU which has yet to run.
    fn keep_restored(&self, port: &impl Port) -> Result<(), VcpuError> {
        if self.bound.was_restored() && port.is_restored() {
            return Err(VcpuError::Restored { vcpu: self.id() });
        }
        Ok(())
    }

    pub(super) fn msr_set_by_host_at(
        &mut self,
        port: &impl Port,
        index: MsrIndex,
    ) -> Result<(), AnswerError> {
        self.bound.check(self.id(), port.place())?;
        self.keep_restored(port)?;
        self.follow();
        self.own.state.msr_set_by_host(&self.program.thing, index);
        if let Some(before) = &mut self.own.before {
            before.msr_set_by_host(index);
        }
        Ok(())
    }

    /// Whether the gate may go by the CPUID that it was given, if the kernel has this one.
    fn check_cpuid(&self, kvm: Option<Vec<kvm_cpuid_entry2>>) -> Result<(), VcpuError> {
        if kvm.is_none_or(|leaves| self.own.relied_on.is_safe_for(&leaves.leaves())) {
            return Ok(());
        }
        Err(VcpuError::OtherCpuid { vcpu: self.id() })
    }

    // A function of its own in every build: scripts/bench counts what happens in it.
    #[inline(never)]
    pub(super) fn answer_at(&mut self, port: &mut impl Port) -> Result<Outcome, AnswerError> {
        // First, where it costs least.
        if !self.bound.is_running_at_page_of(port.place()) {
            self.first_exit(port)?;
        }
        let exit = taken(port)?;
        self.own.next_exit(port);
        self.follow();
        self.own.answer(&self.program, port, &exit)
    }

    /// Goes on with the first exit of a vCPU since it was reset or restored, if its CPUID is as it was then:
    /// until it runs a VMM may change it. The exit of one that this may not answer for is left at #GP.
    #[cold]
    #[inline(never)]
    fn first_exit(&mut self, port: &mut impl Port) -> Result<(), AnswerError> {
        taken(port)?;
        self.bound.check(self.id(), port.place())?;
        self.check_cpuid(port.cpuid()?)?;
        self.bound.runs();
        Ok(())
    }

    // A function of its own in every build: scripts/bench counts what happens in it.
    #[inline(never)]
    pub(super) fn finish_at(
        &mut self,
        port: &mut impl Port,
        asked: &HandlerRequest,
        reply: Reply,
    ) -> Result<(), AnswerError> {
        if !self.bound.is_running_at_page_of(port.place()) {
            self.bound.check(self.id(), port.place())?;
        }
        let waits =
            port.pending().ok().flatten().is_some_and(|exit| {
                (exit.index, exit.access) == (asked.exit.index, asked.exit.access)
            });
        let is_it = (asked.by, asked.number) == (self.own.number, self.own.exits);
        if !is_it || !waits || !port.is_marked() {
            return Err(AnswerError::Stale);
        }
        port.reply(reply);
        port.settle();
        self.own.finished(reply);
        Ok(())
    }

    pub(super) fn reset_at(&mut self, port: &mut impl Port) -> Result<(), AnswerError> {
        self.bound.is_open_to(self.id(), port.place())?;
        self.keep_restored(port)?;
        self.tie(port.place())?;
        self.bound.begin();
        self.check_cpuid(port.cpuid()?)?;
        port.forget()?;
        self.own.finished(Reply::FAULT);
        self.follow();
        self.own.state.reset(&self.program.thing);
        if let Some(before) = &mut self.own.before {
            before.reset();
        }
        if self.own.shared.options.events.rip == Rip::Shown {
            port.ask_for_registers();
        }
        let mut machine = Through {
            port,
            memory: self.own.shared.options.memory.as_deref(),
        };
        for device in self.own.devices.all() {
            device.reset(&mut machine)?;
        }
        self.bound.done(port.place(), Beginning::Reset);
        Ok(())
    }

    /// Has KVM complete what has been answered.
    fn come_to_rest(&mut self, port: &mut impl Port) -> Result<(), StateError> {
        self.bound.check(self.id(), port.place())?;
        if !matches!(port.pending(), Ok(None)) {
            return Err(StateError::Unanswered);
        }
        port.complete()?;
        // One that has been run on since has had its #GP.
        self.own.finished(Reply::FAULT);
        Ok(())
    }

    pub(super) fn save_at(&mut self, port: &mut impl Port) -> Result<Vec<u8>, StateError> {
        self.come_to_rest(port)?;
        self.follow_for_good();
        let mut saved = self.own.state.save(&self.program.thing);
        saved.devices = self.own.devices.save();
        Ok(saved.encode())
    }

    /// Takes over the program in force, if it has been replaced.
    #[inline]
    fn follow(&mut self) {
        if !self.own.shared.current.is_number(self.settled) {
            self.catch_up();
        }
    }

    #[cold]
    #[inline(never)]
    fn catch_up(&mut self) {
        if let Some(other) = self.own.shared.current.newer_than(&self.program) {
            self.own.follow(&mut self.program, other);
        } else if self.program.is_kept() {
            self.own.before = None;
        }
        self.settled = match self.own.before {
            Some(_) => UNSETTLED,
            None => self.program.number,
        };
    }

    #[cfg(test)]
    #[cfg(not(loom))]
    pub(super) const fn sets_aside(&self) -> bool {
        self.own.before.is_some()
    }

    /// The same once no replacement is under way that may yet be withdrawn.
    fn follow_for_good(&mut self) {
        let shared = Arc::clone(&self.own.shared);
        let control = shared.lock();
        self.follow();
        drop(control);
    }
}

/// The exit that waits for an answer. Whatever goes wrong from here on, the guest gets #GP.
#[inline]
fn taken(port: &mut impl Port) -> Result<Exit, AnswerError> {
    let exit = match port.pending() {
        Ok(Some(exit)) => exit,
        Ok(None) => return Err(AnswerError::NoExit),
        Err(reason) => {
            port.reply(Reply::FAULT);
            return Err(AnswerError::Reason(reason));
        }
    };
    port.reply(Reply::FAULT);
    Ok(exit)
}

fn port(vcpu: &mut impl VcpuHandle) -> KvmPort<'_> {
    let (fd, run) = vcpu.parts();
    KvmPort::new(fd, run)
}
