//! One vCPU's part of a gate, owned by the vCPU's thread: from its exits to its answers.

use std::fmt;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::thread;
use std::time::Instant;

use kvm_bindings::kvm_run;
use msrgate_filter::{Access, Exit, MsrIndex, Reply};
use msrgate_policy::answer::{Answer, Carried, Deed, Forwarded, Responder, Saved, Step, VcpuState};

use super::answer::{Asked, Outcome, Violation};
use super::cpuid::GuestCpuid;
use super::current::Numbered;
use super::device::{self, Device, Through};
use super::devices::{Devices, Reset};
use super::error::{AnswerError, StateError};
use super::events::{Happened, Limit, Passage, Rip, Track, Values};
use super::port::{KvmPort, Port};
use super::rewound::{Rewound, Wait};
use super::touch::Touch;
use super::{Shared, VcpuId};
use crate::calls::{Level, Taken};

/// One vCPU's part of a gate.
pub struct VcpuGate {
    id: VcpuId,
    shared: Arc<Shared>,
    /// The program that this vCPU last answered by.
    program: Numbered<Responder>,
    state: VcpuState,
    devices: Devices,
    track: Arc<Track>,
    limit: Limit,
    /// How many exits have been handed to the VMM's own code or answered.
    exits: u64,
    /// Where the guest was at the exit that is being answered, if events are to say it.
    rip: Option<u64>,
    may_nest: MayNest,
    rewound: Rewound,
}

impl fmt::Debug for VcpuGate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VcpuGate")
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

/// Whether the vCPU may run a nested guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum MayNest {
    Never,
    Perhaps,
}

/// What became of a step that this vCPU could do alone.
enum Done {
    Reply(Reply, Deed),
    Rewound,
}

impl VcpuGate {
    pub(super) fn new(
        id: VcpuId,
        cpuid: &GuestCpuid,
        may_nest: bool,
        shared: Arc<Shared>,
        program: Numbered<Responder>,
    ) -> Self {
        let devices = Devices::new(id, &shared.options.devices, cpuid);
        let mut gate = Self {
            id,
            state: VcpuState::new(&program.thing, |bit| cpuid.has(bit)),
            devices,
            track: shared.tracks.add(id, shared.options.events.queue),
            limit: Limit::new(shared.options.events.per_second),
            exits: 0,
            rip: None,
            may_nest: if may_nest {
                MayNest::Perhaps
            } else {
                MayNest::Never
            },
            rewound: Rewound::never(),
            program,
            shared,
        };
        gate.devices.follow(&gate.program.thing);
        gate
    }

    /// The vCPU's number.
    #[must_use]
    pub const fn id(&self) -> VcpuId {
        self.id
    }

    /// Answers the MSR exit with which the vCPU's `KVM_RUN` has just returned.
    ///
    /// # Errors
    /// There is no such exit, or a call that the answer needs fails. The guest gets #GP, if the
    /// vCPU is run on.
    #[cfg(feature = "kvm-ioctls")]
    pub fn answer(&mut self, vcpu: &mut kvm_ioctls::VcpuFd) -> Result<Outcome, AnswerError> {
        with_port(vcpu, |port| self.answer_at(port))
    }

    /// The same for any binding: the vCPU's file descriptor, and its shared page.
    ///
    /// # Errors
    /// As [`Self::answer`].
    pub fn answer_raw(
        &mut self,
        vcpu: &impl AsRawFd,
        run: &mut kvm_run,
    ) -> Result<Outcome, AnswerError> {
        self.answer_at(&mut KvmPort::new(vcpu.as_raw_fd(), run))
    }

    /// Gives the answer of the VMM's own code to the exit that [`Outcome::Handler`] was about.
    ///
    /// # Errors
    /// The vCPU has been run since, or `asked` is another vCPU's.
    #[expect(clippy::needless_pass_by_value, reason = "an exit is answered once")]
    #[cfg(feature = "kvm-ioctls")]
    pub fn finish(
        &mut self,
        vcpu: &mut kvm_ioctls::VcpuFd,
        asked: Asked,
        reply: Reply,
    ) -> Result<(), AnswerError> {
        with_port(vcpu, |port| self.finish_at(port, &asked, reply))
    }

    /// The same for any binding.
    ///
    /// # Errors
    /// As [`Self::finish`].
    #[expect(clippy::needless_pass_by_value, reason = "an exit is answered once")]
    pub fn finish_raw(
        &mut self,
        vcpu: &impl AsRawFd,
        run: &mut kvm_run,
        asked: Asked,
        reply: Reply,
    ) -> Result<(), AnswerError> {
        self.finish_at(&mut KvmPort::new(vcpu.as_raw_fd(), run), &asked, reply)
    }

    /// The vCPU is new, or is reset by INIT or a reboot: registers hold what they hold at reset,
    /// nothing is pinned, devices begin anew. Call it before the vCPU first runs, after
    /// `KVM_SET_CPUID2`, and at each reset. An exit that KVM has not completed is forgotten: it would
    /// move RIP and write to registers of the vCPU that begins anew.
    ///
    /// # Errors
    /// A device's call on the vCPU fails.
    #[cfg(feature = "kvm-ioctls")]
    pub fn reset(&mut self, vcpu: &mut kvm_ioctls::VcpuFd) -> Result<(), AnswerError> {
        with_port(vcpu, |port| self.reset_at(port))
    }

    /// The same for any binding.
    ///
    /// # Errors
    /// As [`Self::reset`].
    pub fn reset_raw(&mut self, vcpu: &impl AsRawFd, run: &mut kvm_run) -> Result<(), AnswerError> {
        self.reset_at(&mut KvmPort::new(vcpu.as_raw_fd(), run))
    }

    /// The VMM has written an MSR of this vCPU by `KVM_SET_MSRS`, as one does that resets its guest:
    /// it is no longer pinned, and if it is emulated it holds what it holds at reset.
    pub fn host_wrote(&mut self, index: MsrIndex) {
        self.follow();
        self.state.host_wrote(&self.program.thing, index);
    }

    /// The vCPU's emulated registers, pins and devices, for a snapshot or a migration. An answer
    /// that KVM has not taken yet is completed first (S5.6), so save the vCPU's registers after this.
    ///
    /// # Errors
    /// The last exit has not been [answered](Self::answer): KVM would complete it as if the policy
    /// let it through. Or `KVM_RUN` under `immediate_exit` fails.
    #[cfg(feature = "kvm-ioctls")]
    pub fn save(&mut self, vcpu: &mut kvm_ioctls::VcpuFd) -> Result<Vec<u8>, StateError> {
        with_port(vcpu, |port| self.save_at(port))
    }

    /// The same for any binding.
    ///
    /// # Errors
    /// As [`Self::save`].
    pub fn save_raw(
        &mut self,
        vcpu: &impl AsRawFd,
        run: &mut kvm_run,
    ) -> Result<Vec<u8>, StateError> {
        self.save_at(&mut KvmPort::new(vcpu.as_raw_fd(), run))
    }

    /// Takes over a state that [`Self::save`] gave, perhaps of another host. It
    /// stands for the first [`Self::reset`], and may come after one. An exit that KVM has not completed
    /// is forgotten, as there: on a vCPU that has run, call it before `KVM_SET_VCPU_EVENTS`.
    ///
    /// # Errors
    /// The bytes are none, or have a register, a pin or a device that the program has not. Nothing
    /// has been restored then. Or the call fails that shows the guest its microcode's revision.
    #[cfg(feature = "kvm-ioctls")]
    pub fn restore(
        &mut self,
        vcpu: &mut kvm_ioctls::VcpuFd,
        saved: &[u8],
    ) -> Result<(), StateError> {
        with_port(vcpu, |port| self.restore_at(port, saved))
    }

    /// The same for any binding.
    ///
    /// # Errors
    /// As [`Self::restore`].
    pub fn restore_raw(
        &mut self,
        vcpu: &impl AsRawFd,
        run: &mut kvm_run,
        saved: &[u8],
    ) -> Result<(), StateError> {
        self.restore_at(&mut KvmPort::new(vcpu.as_raw_fd(), run), saved)
    }

    pub(super) fn restore_at(
        &mut self,
        port: &mut impl Port,
        saved: &[u8],
    ) -> Result<(), StateError> {
        let saved = Saved::decode(saved)?;
        port.forget()?;
        self.follow();
        let mut state = self.state.clone();
        state.restore(&self.program.thing, &saved)?;
        self.devices.restore(&saved)?;
        self.devices.reset = Reset::Done;
        self.state = state;
        // The guest reads the revision from a register of KVM's, which is the other host's no more.
        if let Some(microcode) = &self.devices.microcode {
            microcode.show(&mut Through { port, memory: None })?;
        }
        Ok(())
    }

    // A function of its own in every build: scripts/bench counts what happens in it.
    #[inline(never)]
    pub(super) fn answer_at(&mut self, port: &mut impl Port) -> Result<Outcome, AnswerError> {
        let exit = match port.pending() {
            Ok(Some(exit)) => exit,
            Ok(None) => return Err(AnswerError::NoExit),
            Err(reason) => {
                port.reply(Reply::FAULT);
                return Err(AnswerError::Reason(reason));
            }
        };
        // Whatever goes wrong from here on, the guest gets #GP.
        port.reply(Reply::FAULT);
        self.exits += 1;
        self.follow();
        if self.shared.options.events.rip == Rip::Shown {
            // Before asking: what had not been asked for is not there at this exit.
            self.rip = port.rip();
            port.ask_for_registers();
        }
        let responder = Arc::clone(&self.program.thing);
        let answer = responder.respond(&mut self.state, &exit);
        match answer.step {
            Step::Handler(name) if !self.devices.own.contains_key(&**name) => {
                self.tell(&exit, &answer, answer.deed);
                port.mark();
                return Ok(Outcome::Handler(Asked {
                    handler: Arc::clone(name),
                    exit,
                    vcpu: self.id,
                    number: self.exits,
                }));
            }
            Step::Kill => {
                self.tell(&exit, &answer, answer.deed);
                port.settle();
                return Ok(Outcome::Kill(Violation {
                    vcpu: self.id,
                    index: exit.index,
                    access: exit.access,
                }));
            }
            _ => {}
        }
        match self.carry_out(port, &exit, &answer)? {
            Done::Reply(reply, deed) => {
                self.rewound = Rewound::never();
                self.tell(&exit, &answer, deed);
                port.reply(reply);
                port.settle();
            }
            Done::Rewound => thread::yield_now(),
        }
        Ok(Outcome::Resume)
    }

    /// What is left to do for an answer that needs neither the VMM nor its end.
    fn carry_out(
        &mut self,
        port: &mut impl Port,
        exit: &Exit,
        answer: &Answer<'_>,
    ) -> Result<Done, AnswerError> {
        match answer.step {
            Step::Reply(reply) => Ok(Done::Reply(reply, answer.deed)),
            Step::Rewind | Step::Open => self.let_through(port, exit, answer),
            Step::Forward(access) => self.forward(port, exit, answer, &access),
            Step::Handler(name) => self.ask(port, exit, answer.deed, Some(name)),
            Step::Device(_) => self.ask(port, exit, answer.deed, None),
            // `Kill` has been dealt with; and of a step that is not known here nothing is done.
            _ => Ok(Done::Reply(Reply::FAULT, Deed::Denied)),
        }
    }

    /// Has the guest execute the access itself, now or as soon as the filter lets it.
    fn let_through(
        &mut self,
        port: &mut impl Port,
        exit: &Exit,
        answer: &Answer<'_>,
    ) -> Result<Done, AnswerError> {
        if answer.step == Step::Open || self.program.thing.is_traced() {
            if answer.step == Step::Open {
                self.tell(exit, answer, answer.deed);
            }
            let number = self.program.number;
            self.shared.opened.ask(number, exit.index, exit.access)?;
        }
        let waited = (self.program.number, exit.index, exit.access);
        if self.rewound.again(waited, Instant::now()) == Wait::TooLong {
            let Exit { index, access, .. } = *exit;
            return Err(AnswerError::OtherFilter { index, access });
        }
        port.rewind()?;
        Ok(Done::Rewound)
    }

    fn forward(
        &mut self,
        port: &mut impl Port,
        exit: &Exit,
        answer: &Answer<'_>,
        access: &Forwarded,
    ) -> Result<Done, AnswerError> {
        if self.may_nest == MayNest::Perhaps && port.level()? == Level::Nested {
            // The register is the nested guest's. One that is only to be seen it may have itself.
            return match answer.deed {
                Deed::Allowed => {
                    let open = Answer {
                        step: Step::Open,
                        ..*answer
                    };
                    self.let_through(port, exit, &open)
                }
                _ => Ok(Done::Reply(Reply::FAULT, Deed::Denied)),
            };
        }
        let current = if access.needs_current() {
            match port.register(access.index())? {
                Some(value) => value,
                None => return Ok(Done::Reply(Reply::FAULT, Deed::Denied)),
            }
        } else {
            0
        };
        let (carried, deed) = access.carry(current);
        Ok(match carried {
            Carried::Value(value) => Done::Reply(Reply::value(value), deed),
            Carried::Fault => Done::Reply(Reply::FAULT, deed),
            Carried::Set(value) => match port.set_register(access.index(), value)? {
                Taken::Yes => {
                    self.state.carried(&self.program.thing, access);
                    Done::Reply(Reply::DONE, deed)
                }
                Taken::No => Done::Reply(Reply::FAULT, Deed::Denied),
            },
        })
    }

    /// Asks the device that answers for `handler`, or the emulated one.
    fn ask(
        &mut self,
        port: &mut impl Port,
        exit: &Exit,
        deed: Deed,
        handler: Option<&str>,
    ) -> Result<Done, AnswerError> {
        if self.devices.reset == Reset::Never {
            return Err(AnswerError::NotReset);
        }
        let memory = self.shared.options.memory.clone();
        let mut machine = Through {
            port,
            memory: memory.as_deref(),
        };
        let device: Option<&mut dyn Device> = match handler {
            Some(name) => match self.devices.own.get_mut(name) {
                Some(device) => Some(&mut **device),
                None => None,
            },
            None => match &mut self.devices.microcode {
                Some(device) => Some(device),
                None => None,
            },
        };
        let reply = match device {
            Some(device) => device::ask(device, exit, &mut machine)?,
            None => Reply::FAULT,
        };
        let deed = if reply.error == 0 { deed } else { Deed::Denied };
        Ok(Done::Reply(reply, deed))
    }

    // A function of its own in every build: scripts/bench counts what happens in it.
    #[inline(never)]
    pub(super) fn finish_at(
        &mut self,
        port: &mut impl Port,
        asked: &Asked,
        reply: Reply,
    ) -> Result<(), AnswerError> {
        // The data of the pending exit are the #GP that stood in for the answer.
        let waits =
            port.pending().ok().flatten().is_some_and(|exit| {
                (exit.index, exit.access) == (asked.exit.index, asked.exit.access)
            });
        if (asked.vcpu, asked.number) != (self.id, self.exits) || !waits || !port.is_marked() {
            return Err(AnswerError::Stale);
        }
        port.reply(reply);
        port.settle();
        Ok(())
    }

    pub(super) fn reset_at(&mut self, port: &mut impl Port) -> Result<(), AnswerError> {
        port.forget()?;
        self.follow();
        self.state.reset(&self.program.thing);
        if self.shared.options.events.rip == Rip::Shown {
            port.ask_for_registers();
        }
        let memory = self.shared.options.memory.clone();
        let mut machine = Through {
            port,
            memory: memory.as_deref(),
        };
        for device in self.devices.all() {
            device.reset(&mut machine)?;
        }
        self.devices.reset = Reset::Done;
        Ok(())
    }

    pub(super) fn save_at(&mut self, port: &mut impl Port) -> Result<Vec<u8>, StateError> {
        if !matches!(port.pending(), Ok(None)) {
            return Err(StateError::Unanswered);
        }
        port.complete()?;
        self.follow();
        let mut saved = self.state.save(&self.program.thing);
        saved.devices = self.devices.save();
        Ok(saved.encode())
    }

    /// Takes over the program in force, if it has been replaced.
    #[inline]
    fn follow(&mut self) {
        if let Some(newer) = self.shared.current.newer_than(&self.program) {
            self.take_over(newer);
        }
    }

    #[cold]
    fn take_over(&mut self, newer: Numbered<Responder>) {
        self.state = self.state.under(&self.program.thing, &newer.thing);
        self.devices.follow(&newer.thing);
        self.program = newer;
    }

    /// Counts an access, and makes an event of it if the policy wants one.
    #[inline]
    fn tell(&mut self, exit: &Exit, answer: &Answer<'_>, deed: Deed) {
        self.track.count(exit.index, exit.access, deed);
        let told = Answer { deed, ..*answer };
        let seen = &self.shared.seen;
        // What nobody remembers is told: a guest could make the VM forget what it wants to hide.
        let program = self.program.number;
        if told.is_event(|| seen.touch(program, exit.index, exit.access) != Touch::Again) {
            self.note(exit, &told);
        }
    }

    /// Makes an event of an access, unless there have been too many of its kind.
    #[inline(never)]
    fn note(&mut self, exit: &Exit, answer: &Answer<'_>) {
        let Exit {
            index,
            access,
            reason,
            data,
        } = *exit;
        let deed = answer.deed;
        let time = Happened::now();
        let Passage::Passes { held_back } = self.limit.ask(index, access, deed, time) else {
            return;
        };
        let options = &self.shared.options.events;
        let is_write = access == Access::Write;
        self.track.tell(&Happened {
            time,
            index,
            access,
            reason,
            deed,
            value: (is_write && options.values == Values::Shown).then_some(data),
            rip: self.rip,
            origin: answer.origin,
            held_back,
            digest: self.program.thing.program().digest(),
        });
    }
}

#[cfg(feature = "kvm-ioctls")]
fn with_port<T>(vcpu: &mut kvm_ioctls::VcpuFd, act: impl FnOnce(&mut KvmPort<'_>) -> T) -> T {
    let fd = vcpu.as_raw_fd();
    act(&mut KvmPort::new(fd, vcpu.get_kvm_run()))
}
