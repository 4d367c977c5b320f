//! The `VcpuGate` of one vCPU, owned by the vCPU's thread: it answers the vCPU's exits.

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

/// A number that no generation of the program has.
const UNSETTLED: u64 = u64::MAX;

/// The part of a gate that answers the MSR exits of one vCPU.
///
/// A `VcpuGate` holds the pins and emulated registers of the vCPU. A VMM keeps the `VcpuGate` for as long as
/// the vCPU may run, and drops it before it unmaps the vCPU's shared page. A VMM makes these calls, in this
/// order: [`Gate::vcpu`](super::Gate::vcpu), with the CPUID that `KVM_SET_CPUID2` gets; `KVM_SET_CPUID2`;
/// [`reset`](Self::reset), or [`restore`](Self::restore) for a vCPU that comes from elsewhere; then
/// [`answer`](Self::answer) after each `KVM_RUN` that returns with an MSR exit, and [`finish`](Self::finish)
/// for each handler request, before the next `KVM_RUN`.
///
/// A call out of this order returns an error, and the guest gets #GP, with one exception: if `answer` is not
/// called for an exit, the kernel completes the exit itself. The guest then reads 0, or its write is dropped
/// silently.
///
/// Each call on a vCPU takes `kvm_ioctls::VcpuFd`, or a [`RawVcpu`](super::RawVcpu) of any other
/// binding.
///
/// Only the process that made the `VcpuGate` may use it: a forked child cannot use the vCPU.
///
/// A `VcpuGate` is `Send`. A `VcpuGate` is not `Sync`, since a VMM's [`Device`](super::Device) need not be
/// `Sync`; every call except [`Self::id`] takes `&mut self`.
#[must_use = "without it the vCPU's exits have no answer"]
pub struct VcpuGate {
    /// The vCPU whose exits this `VcpuGate` answers.
    bound: Bound,
    /// The program by which the last exit was answered.
    program: Generation<Responder>,
    /// The number of `program`, or [`UNSETTLED`] while the program may be withdrawn.
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
        // If the VMM's handler has not answered an exit, log that exit now: otherwise it would never be
        // logged.
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

    /// The number of the vCPU that this `VcpuGate` is for.
    #[must_use]
    pub const fn id(&self) -> VcpuId {
        self.own.id
    }

    /// Answers the MSR exit with which the vCPU's `KVM_RUN` has just returned. Call `answer` for each MSR
    /// exit, before the next `KVM_RUN`, even before one under `immediate_exit`. Otherwise `KVM_RUN`
    /// completes the exit as done, with 0 for a read, and a later `answer` to that exit has no effect and
    /// reports no error.
    ///
    /// # Errors
    /// After an error, except [`AnswerError::Theirs`], the guest gets #GP if the VMM runs the vCPU again.
    ///
    /// - [`AnswerError::NoExit`] or [`AnswerError::Reason`]: the vCPU has no MSR exit, or one with an
    ///   unknown reason.
    /// - [`AnswerError::Vcpu`]: `vcpu` was not [reset](Self::reset), is another vCPU, or got another
    ///   CPUID after the reset.
    /// - [`AnswerError::Call`]: a call that the answer needs fails.
    /// - [`AnswerError::Publish`], [`AnswerError::OtherFilter`] or [`AnswerError::Gone`]: the kernel's
    ///   filter refuses the access, which the program lets through, and will keep refusing it.
    /// - [`AnswerError::Theirs`]: the VMM's own filter or mask asks for the exit. The gate has not answered
    ///   the exit: the VMM has to answer it. This error comes only after
    ///   [`Gate::set_beside`](super::Gate::set_beside).
    pub fn answer<V: VcpuHandle>(&mut self, vcpu: &mut V) -> Result<Outcome, AnswerError> {
        let mut port = port(vcpu);
        if !V::ARE_ONE && !self.bound.is_running(port.place()) {
            self.first_exit(&mut port)?;
        }
        self.answer_at(&mut port)
    }

    /// Gives the reply of the VMM's handler to the exit of a handler request, [`Outcome::Handler`].
    /// Call `finish` before the vCPU runs again: otherwise the guest gets #GP. The access is logged and
    /// counted as handled, or as denied if `reply` is a fault.
    ///
    /// # Errors
    /// [`AnswerError::Stale`] if the vCPU has been run, [reset](Self::reset) or answered since, or if
    /// `asked` is of another vCPU; [`AnswerError::Vcpu`] if `vcpu` is another vCPU. The guest has got a #GP,
    /// or gets one when the vCPU runs again.
    #[expect(clippy::needless_pass_by_value, reason = "an exit is answered once")]
    pub fn finish(
        &mut self,
        vcpu: &mut impl VcpuHandle,
        asked: HandlerRequest,
        reply: Reply,
    ) -> Result<(), AnswerError> {
        self.finish_at(&mut port(vcpu), &asked, reply)
    }

    /// Resets the vCPU's state in the gate: emulated registers get their reset values, pins are
    /// released, and devices are reset. Call `reset` before the vCPU first runs, after `KVM_SET_CPUID2`, and
    /// each time the vCPU is reset, by INIT or a reboot. If KVM has not completed an exit, KVM forgets that
    /// exit: otherwise its completion would move RIP and write to registers of the reset vCPU.
    ///
    /// The first `reset` or [`Self::restore`] ties this `VcpuGate` to `vcpu`, by the file descriptor and
    /// the shared page. From then on this `VcpuGate` answers for no other vCPU.
    ///
    /// # Errors
    /// - [`AnswerError::Vcpu`] with [`VcpuError::OtherVcpu`], [`VcpuError::TiedTwice`] or
    ///   [`VcpuError::Restored`]: `vcpu` is another vCPU than the first time, has another [`VcpuGate`],
    ///   or has not run since [`Self::restore`], whose state would be lost. A `KVM_RUN` under
    ///   `immediate_exit` counts as running. After this error the vCPU's state is unchanged.
    /// - [`AnswerError::Vcpu`] with [`VcpuError::OtherCpuid`]: KVM has no CPUID for the vCPU, or
    ///   another one than [`Gate::vcpu`](super::Gate::vcpu) was given. The vCPU counts as not reset
    ///   until `reset` or [`Self::restore`] succeeds.
    /// - [`AnswerError::Call`]: a call on the vCPU or of a device fails. The vCPU counts as not reset until
    ///   `reset` or [`Self::restore`] succeeds.
    pub fn reset(&mut self, vcpu: &mut impl VcpuHandle) -> Result<(), AnswerError> {
        self.reset_at(&mut port(vcpu))
    }

    /// Resets a vCPU that will run before it gets another CPUID. After [`Self::reset`] the gate checks the
    /// vCPU's CPUID once more at the first exit; this function makes that check now instead. Then
    /// [`Self::answer`] calls nothing but `KVM_RUN`, as the seccomp rules of some VMMs demand, if each exit
    /// brings the registers in `kvm_run` and the program has no `mask`, `sticky`, `pin` or device.
    ///
    /// # Errors
    /// The errors are those of [`Self::reset`].
    pub fn reset_to_run(&mut self, vcpu: &mut impl VcpuHandle) -> Result<(), AnswerError> {
        self.reset_at(&mut port(vcpu))?;
        self.bound.runs();
        Ok(())
    }

    /// Makes KVM take the last answer, if KVM has not taken it yet, by a `KVM_RUN` that does not enter the
    /// guest (S5.6). Call this before a VMM looks at the vCPU's registers. If a debugger steps the vCPU,
    /// `kvm_run` may have the exit reason `KVM_EXIT_DEBUG` afterwards.
    ///
    /// # Errors
    /// The errors are those of [`Self::save`].
    pub fn complete(&mut self, vcpu: &mut impl VcpuHandle) -> Result<(), StateError> {
        self.come_to_rest(&mut port(vcpu))
    }

    /// Returns true if KVM has not taken the gate's reply to the last exit yet. Returns false if the gate
    /// has not replied but rewound the access, so that the guest executes it again.
    pub fn has_answer(&self, vcpu: &mut impl VcpuHandle) -> bool {
        port(vcpu).is_marked()
    }

    /// Tells the gate that the VMM has written an MSR of this vCPU by `KVM_SET_MSRS`, as a VMM does
    /// that resets its guest. The MSR's pin is released, and if the MSR is emulated it gets its reset
    /// value.
    ///
    /// # Errors
    /// [`AnswerError::Vcpu`] if `vcpu` was not [reset](Self::reset), is another vCPU, or has not run
    /// since [`Self::restore`], whose pin and register would be lost. After this error the vCPU's state is
    /// unchanged.
    pub fn msr_set_by_host(
        &mut self,
        vcpu: &mut impl VcpuHandle,
        index: MsrIndex,
    ) -> Result<(), AnswerError> {
        self.msr_set_by_host_at(&port(vcpu), index)
    }

    /// Returns the vCPU's emulated registers, pins and devices as bytes, for a snapshot or a migration.
    ///
    /// If KVM has not taken the last answer yet, `save` first makes KVM take it (S5.6), so save the vCPU's
    /// registers after this call. If a [`Gate::replace`](super::Gate::replace) is under way, `save` also
    /// waits for its end, so that the state is of a program that stays in force. If a debugger steps the
    /// vCPU, `kvm_run` may hold `KVM_EXIT_DEBUG` afterwards, which reports the step over the completed
    /// access.
    ///
    /// # Errors
    /// - [`StateError::Unanswered`]: the last exit has not been [answered](Self::answer). KVM would complete
    ///   that exit as if the policy allowed the access.
    /// - [`StateError::Vcpu`]: `vcpu` was not [reset](Self::reset), or is another vCPU.
    /// - [`StateError::Call`]: `KVM_RUN` under `immediate_exit` fails.
    pub fn save(&mut self, vcpu: &mut impl VcpuHandle) -> Result<Vec<u8>, StateError> {
        self.save_at(&mut port(vcpu))
    }

    /// Restores a state that [`Self::save`] returned, on this host or another. The call replaces the first
    /// [`Self::reset`], and may also come after a reset. If KVM has not completed an exit, KVM forgets that
    /// exit, as in [`Self::reset`]: on a vCPU that has run, call `restore` before `KVM_SET_VCPU_EVENTS`.
    /// Until the vCPU has run, [`Self::reset`] and [`Self::msr_set_by_host`] are errors, since they would
    /// undo the restore. Like [`Self::save`], `restore` waits for a [`Gate::replace`](super::Gate::replace)
    /// that is under way.
    ///
    /// # Errors
    /// - [`StateError::Restore`]: the bytes are not a saved vCPU state, or name a register, pin or
    ///   device that the program does not have. No part of the state has been restored, and an exit that
    ///   waits for an answer still waits.
    /// - [`StateError::Vcpu`]: `vcpu` is another vCPU than the first time, has another [`VcpuGate`],
    ///   has no CPUID in KVM, or another one than [`Gate::vcpu`](super::Gate::vcpu) was given. No part of
    ///   the state has been restored, and an exit that waits for an answer still waits.
    /// - [`StateError::Call`]: a call on the vCPU or of a device fails. The vCPU then counts as not reset
    ///   until `restore` or [`Self::reset`] succeeds.
    pub fn restore(&mut self, vcpu: &mut impl VcpuHandle, saved: &[u8]) -> Result<(), StateError> {
        self.restore_at(&mut port(vcpu), saved)
    }

    /// Returns the values of the MSRs in `list`, which KVM holds for the guest, for a migration. `list`
    /// comes from [`Gate::migration_list`](super::Gate::migration_list) or
    /// [`tight_migration_list`](super::Gate::tight_migration_list). MSRs that this vCPU does not have
    /// are left out. If KVM has not taken the last answer yet, this function first makes KVM take it, as
    /// [`Self::save`] does.
    ///
    /// # Errors
    /// The errors of [`Self::save`], and [`StateError::Call`] if `KVM_GET_MSRS` fails.
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

    /// Sets the values that [`Self::capture_registers`] returned, on this host or another. No pin is
    /// released, so a VMM may call this before [`Self::restore`], or after it if no device of the policy
    /// shows a value in one of the MSRs. After this call the migration lists leave out no register, because
    /// KVM may hold a setting that another program let the guest turn on.
    ///
    /// # Errors
    /// - [`StateError::Register`]: KVM does not accept a value. The values before that one in the list are
    ///   set, the values after it are not.
    /// - [`StateError::Vcpu`]: `vcpu` was neither reset nor restored, or is another vCPU.
    /// - [`StateError::Call`]: `KVM_SET_MSRS` fails.
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
        // Forget the exit only here: `forget` runs the vCPU, and a restore that is refused must change
        // nothing.
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
        // The guest reads the microcode revision from a register of KVM's. A KVM on another host than the
        // old one does not have this revision there yet.
        if let Some(microcode) = &self.own.devices.microcode {
            microcode.show(&mut Through { port, memory: None })?;
        }
        self.bound.done(port.place(), Beginning::Restore);
        port.note_restored();
        Ok(())
    }

    /// Ties this `VcpuGate` to the vCPU at `place`.
    fn tie(&mut self, place: Place) -> Result<(), VcpuError> {
        let before = self.bound.tied_to();
        // The earlier call may have failed with the page of another vCPU, or with a wrong file descriptor
        // for this page.
        if before.is_none_or(|before| before.page() != place.page()) {
            self.own.shared.tie(self.id(), place)?;
            if let Some(before) = before {
                self.own.shared.untie(before);
            }
        }
        self.bound.tie(place);
        Ok(())
    }

    /// Checks that no restored state would be lost: the vCPU was not restored, or has run since.
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

    /// Checks that the gate may rely on the CPUID that the VMM gave it. `kvm` is the CPUID that the kernel
    /// has for the vCPU, or `None` if that is not known.
    fn check_cpuid(&self, kvm: Option<Vec<kvm_cpuid_entry2>>) -> Result<(), VcpuError> {
        if kvm.is_none_or(|leaves| self.own.relied_on.is_safe_for(&leaves.leaves())) {
            return Ok(());
        }
        Err(VcpuError::OtherCpuid { vcpu: self.id() })
    }

    // The function must not be inlined: scripts/bench counts the instructions in it.
    #[inline(never)]
    pub(super) fn answer_at(&mut self, port: &mut impl Port) -> Result<Outcome, AnswerError> {
        // This check comes first, because here it costs least.
        if !self.bound.is_running_at_page_of(port.place()) {
            self.first_exit(port)?;
        }
        let exit = taken(port)?;
        self.own.next_exit(port);
        self.follow();
        self.own.answer(&self.program, port, &exit)
    }

    /// Admits the first exit of a vCPU after a reset or a restore, if the CPUID has not changed since: a
    /// VMM may change the CPUID until the vCPU runs. If this `VcpuGate` may not answer the exit, the reply
    /// stays #GP.
    #[cold]
    #[inline(never)]
    fn first_exit(&mut self, port: &mut impl Port) -> Result<(), AnswerError> {
        taken(port)?;
        self.bound.check(self.id(), port.place())?;
        self.check_cpuid(port.cpuid()?)?;
        self.bound.runs();
        Ok(())
    }

    // The function must not be inlined: scripts/bench counts the instructions in it.
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

    /// Makes KVM complete the vCPU's last exit, if the gate has given its reply and KVM has not taken the
    /// reply yet.
    fn come_to_rest(&mut self, port: &mut impl Port) -> Result<(), StateError> {
        self.bound.check(self.id(), port.place())?;
        if !matches!(port.pending(), Ok(None)) {
            return Err(StateError::Unanswered);
        }
        port.complete()?;
        // If the vCPU has run again since a handler request, the guest has got #GP for that access.
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

    /// Makes this `VcpuGate` use the program in force, if the program has been replaced.
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

    /// Makes this `VcpuGate` use the program in force, after waiting for any replacement that may still be
    /// withdrawn.
    fn follow_for_good(&mut self) {
        let shared = Arc::clone(&self.own.shared);
        let control = shared.lock();
        self.follow();
        drop(control);
    }
}

/// Returns the exit that waits for an answer, and writes #GP as its reply: if the answer fails later,
/// the guest gets #GP.
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
