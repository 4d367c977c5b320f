//! The state that the gate keeps for one vCPU, and the code by which the vCPU's thread carries out a
//! response.

use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use msrgate_filter::{Access, Exit, ExitReason, MsrIndex, Reply};
use msrgate_program::answer::{
    Answer, Carried, Disposition, Forwarded, Responder, Response, VcpuState,
};
use msrgate_program::{CpuidBit, Mode};

use super::beside::Claim;
use super::chosen::Alive;
use super::cpuid::{GuestCpuid, ReliedOn};
use super::device::{self, Device, MicrocodeDevice, Through};
use super::device_set::DeviceSet;
use super::error::AnswerError;
use super::events::{EventRecord, Limit, Passage, Rip, Values, VcpuLog};
use super::id::VcpuId;
use super::outcome::{HandlerRequest, Outcome, Violation};
use super::pass_requests::Asked;
use super::port::Port;
use super::published::Generation;
use super::rewind_timer::{Begun, Filter, First, RewindTimer, Wait};
use super::seen::Touch;
use super::shared::Shared;
use super::watch::Told;
use crate::sys::calls::{self, Level, Taken};

/// The state that the gate keeps for one vCPU, except the program that answers the vCPU's exits.
pub(super) struct Answering {
    pub(super) id: VcpuId,
    /// A number that is unique among the `VcpuGate`s of all gates of this process.
    pub(super) number: u64,
    _alive: Arc<Alive>,
    pub(super) relied_on: ReliedOn,
    pub(super) shared: Arc<Shared>,
    pub(super) state: VcpuState,
    pub(super) devices: DeviceSet,
    /// The state under the previous program, kept while the current program may still be withdrawn.
    pub(super) before: Option<Before>,
    log: Arc<VcpuLog>,
    limit: Limit,
    /// The number of exits that have been answered or handed to the VMM's handler.
    pub(super) exits: u64,
    /// The exit that the VMM's handler is to answer, and the program that says so.
    handed_out: Option<(Generation<Responder>, Exit)>,
    /// The guest's RIP at the exit that is being answered, if events are to hold RIP.
    rip: Option<u64>,
    may_nest: MayNest,
    rewound: RewindTimer,
    /// The accesses that wait for a wider filter. The watcher was told of each when it began to wait.
    begun: Begun,
}

/// The answer to the question if the vCPU may run a nested guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum MayNest {
    Never,
    Perhaps,
}

/// The result of a response that the gate carried out itself, without the VMM's loop.
enum Done {
    Reply(Reply, Disposition),
    Rewound,
    /// The VMM's own filter denied the access with a #GP, of which the gate makes no event.
    TheirFault,
}

/// The number of the next `VcpuGate`.
static NEXT: AtomicU64 = AtomicU64::new(0);

impl Answering {
    /// Makes the state of a vCPU that has not run.
    pub(super) fn new(
        id: VcpuId,
        cpuid: &GuestCpuid,
        alive: Arc<Alive>,
        may_nest: MayNest,
        shared: &Arc<Shared>,
        program: &Responder,
    ) -> Self {
        let mut devices = DeviceSet::new(id, &shared.options.devices, cpuid);
        devices.follow(program);
        let bits = RefCell::new(Vec::new());
        let has = |bit: &CpuidBit| {
            let mut bits = bits.borrow_mut();
            if !bits.contains(bit) {
                bits.push(*bit);
            }
            cpuid.has(bit)
        };
        Self {
            id,
            // Relaxed: the numbers only have to be distinct.
            number: NEXT.fetch_add(1, Ordering::Relaxed),
            _alive: alive,
            state: VcpuState::new(program, has),
            relied_on: cpuid.relied_on(bits.take()),
            devices,
            before: None,
            log: shared.logs.add(id, shared.options.events.queue),
            limit: Limit::new(shared.options.events.per_second),
            exits: 0,
            handed_out: None,
            rip: None,
            may_nest,
            rewound: RewindTimer::never(),
            begun: Begun::none(),
            shared: Arc::clone(shared),
        }
    }

    /// Changes the vCPU's state from one program to another. If the current program has been withdrawn,
    /// `other` may be the program before it.
    pub(super) fn follow(
        &mut self,
        program: &mut Generation<Responder>,
        other: Generation<Responder>,
    ) {
        if program.is_withdrawn()
            && let Some(before) = self.before.take()
        {
            (*program, self.state) = before.again(&program.thing, &self.state, &mut self.devices);
        }
        // If the numbers are equal, the vCPU is back at the program it had.
        if other.number != program.number {
            let state = self.state.under(&program.thing, &other.thing);
            let is_kept = other.is_kept();
            let before = Before {
                microcode: self.devices.follow(&other.thing),
                program: std::mem::replace(program, other),
                state: std::mem::replace(&mut self.state, state),
            };
            self.before = (!is_kept).then_some(before);
        }
    }

    /// Answers an exit. The caller has already written #GP as the reply to the exit.
    #[inline]
    pub(super) fn answer(
        &mut self,
        program: &Generation<Responder>,
        port: &mut impl Port,
        exit: &Exit,
    ) -> Result<Outcome, AnswerError> {
        self.exits += 1;
        if self.shared.options.events.rip == Rip::Shown {
            // Read RIP before asking: this exit has registers only if they were asked for before it.
            self.rip = port.rip();
            port.ask_for_registers();
        }
        match exit.reason {
            ExitReason::Filter if exit.index == MsrIndex::MAX => {
                if let Some(left) = self.last_msr(&program.thing, port, exit) {
                    return left;
                }
            }
            ExitReason::Filter => {}
            // KVM itself refuses the access. If the VMM's mask asks for the exit, the VMM gets it.
            ExitReason::Invalid | ExitReason::Unknown => {
                if self.shared.beside.asks_for(exit.reason) {
                    return Err(theirs(port, exit));
                }
            }
        }
        let answer = program.thing.respond(&mut self.state, exit);
        let done = match answer.response {
            Response::Reply(reply) => Done::Reply(reply, answer.disposition),
            Response::Forward(ref access) => self.forward(program, port, exit, &answer, access)?,
            Response::Device(_) => self.ask(port, exit, answer.disposition, None)?,
            Response::Handler(name) if self.devices.own.contains_key(&**name) => {
                self.ask(port, exit, answer.disposition, Some(name))?
            }
            Response::Handler(name) => {
                self.handed_out = Some((program.clone(), *exit));
                port.mark();
                return Ok(Outcome::Handler(HandlerRequest {
                    handler: Arc::clone(name),
                    exit: *exit,
                    by: self.number,
                    number: self.exits,
                }));
            }
            Response::Rewind | Response::Open => self.let_through(program, port, exit, &answer)?,
            Response::Kill => {
                self.tell(program, exit, &answer, answer.disposition);
                self.watch(program, exit, &answer, answer.disposition);
                port.settle();
                return Ok(Outcome::Kill(Violation {
                    vcpu: self.id,
                    index: exit.index,
                    access: exit.access,
                }));
            }
            // A response that is unknown here is a refusal.
            _ => Done::Reply(Reply::FAULT, Disposition::Denied),
        };
        match done {
            Done::Reply(reply, disposition) => {
                self.rewound = RewindTimer::never();
                self.tell(program, exit, &answer, disposition);
                self.watch(program, exit, &answer, disposition);
                port.reply(reply);
                port.settle();
            }
            Done::Rewound => {}
            Done::TheirFault => port.settle(),
        }
        Ok(Outcome::Resume)
    }

    /// Counts and logs the exit that the VMM's handler was to answer. `reply` is the handler's reply,
    /// or #GP if the handler gave none.
    #[cold]
    #[inline(never)]
    pub(super) fn finished(&mut self, reply: Reply) {
        let disposition = if reply.error == 0 {
            Disposition::Handled
        } else {
            Disposition::Denied
        };
        if let Some((program, exit)) = self.handed_out.take() {
            // The same program gives the same response again. For a handler it does not change the
            // state, which may be of another program by now.
            let answer = program.thing.respond(&mut self.state, &exit);
            self.tell(&program, &exit, &answer, disposition);
        }
    }

    /// Notes that `answer` was called for an exit: a new exit, or the previous one again.
    #[inline]
    pub(super) fn next_exit(&mut self, port: &impl Port) {
        if self.handed_out.is_some() {
            self.next_after_handler(port);
        }
    }

    #[cold]
    #[inline(never)]
    fn next_after_handler(&mut self, port: &impl Port) {
        if port.is_marked() {
            // The vCPU has not run, so this is the same exit, which is logged once it is answered.
            self.handed_out = None;
        } else {
            self.finished(Reply::FAULT);
        }
    }

    /// Makes the guest execute the access again, which succeeds once the kernel's filter allows it.
    /// The function is not inlined, because inlined it would cost each answer four instructions for the
    /// registers that it needs.
    #[inline(never)]
    fn let_through(
        &mut self,
        program: &Generation<Responder>,
        port: &mut impl Port,
        exit: &Exit,
        answer: &Answer<'_>,
    ) -> Result<Done, AnswerError> {
        let mut asked = Asked::Before;
        if answer.response == Response::Open || program.thing.is_traced() {
            if answer.response == Response::Open {
                self.tell(program, exit, answer, answer.disposition);
            }
            let opened = &self.shared.opened;
            asked = opened.ask(program.number, exit.index, exit.access)?;
        }
        let waited = (program.number, exit.index, exit.access);
        let claim = self.shared.beside.get().claim(exit);
        if claim != Claim::None {
            // The access may have begun to wait before the VMM set this filter, and still wait.
            if self.shared.opened.is_settled() || !self.rewound.waits_for(waited) {
                self.watch_opened(program, exit, answer);
            }
            self.rewound = RewindTimer::never();
            self.begun.end(waited);
        }
        match claim {
            Claim::None => {}
            Claim::Exit => return Err(theirs(port, exit)),
            Claim::Fault => return Ok(Done::TheirFault),
        }
        // The publisher may have set the filter already, if it has run before this thread went on.
        let filter = if asked == Asked::Before && self.shared.opened.is_settled() {
            Filter::Set
        } else {
            Filter::InTheMaking
        };
        let now = (self.shared.options.clock.0)();
        let wait = self.rewound.again(waited, filter, now);
        if wait == Wait::TooLong {
            let Exit { index, access, .. } = *exit;
            return Err(AnswerError::OtherFilter { index, access });
        }
        if wait == Wait::Begin && self.begun.begin(waited) == First::Yes {
            self.watch_opened(program, exit, answer);
        }
        port.rewind()?;
        // The publisher may need this processor. Once the publisher has taken the requests, it has most
        // likely come to the call that sets the filter, and that filter is in force before the call
        // returns.
        if wait == Wait::GoOn || self.shared.opened.is_waiting() {
            thread::yield_now();
        }
        Ok(Done::Rewound)
    }

    fn forward(
        &mut self,
        program: &Generation<Responder>,
        port: &mut impl Port,
        exit: &Exit,
        answer: &Answer<'_>,
        access: &Forwarded,
    ) -> Result<Done, AnswerError> {
        if self.may_nest == MayNest::Perhaps && port.level()? == Level::Nested {
            // The register belongs to the nested guest. If the access is only to be seen or recorded,
            // the nested guest may execute it itself.
            let is_audit = program.thing.program().settings().mode == Mode::Audit;
            if answer.disposition != Disposition::Allowed && !is_audit {
                return Ok(Done::Reply(Reply::FAULT, Disposition::Denied));
            }
            let mut open = *answer;
            open.response = Response::Open;
            return self.let_through(program, port, exit, &open);
        }
        let current = if access.needs_current() {
            match port.register(access.index())? {
                Some(value) => value,
                None => return Ok(Done::Reply(Reply::FAULT, Disposition::Denied)),
            }
        } else {
            0
        };
        let (carried, disposition) = access.carry(current);
        Ok(match carried {
            Carried::Value(value) => Done::Reply(Reply::value(value), disposition),
            Carried::Fault => Done::Reply(Reply::FAULT, disposition),
            Carried::Set(value) => match port.set_register(access.index(), value)? {
                Taken::Yes => {
                    self.state.carried(access);
                    Done::Reply(Reply::DONE, disposition)
                }
                Taken::No => Done::Reply(Reply::FAULT, Disposition::Denied),
            },
        })
    }

    /// Asks the device that answers for `handler`, or the emulated device if `handler` is `None`.
    #[inline]
    fn ask(
        &mut self,
        port: &mut impl Port,
        exit: &Exit,
        disposition: Disposition,
        handler: Option<&str>,
    ) -> Result<Done, AnswerError> {
        let mut machine = Through {
            port,
            memory: self.shared.options.memory.as_deref(),
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
        let disposition = if reply.error == 0 {
            disposition
        } else {
            Disposition::Denied
        };
        Ok(Done::Reply(reply, disposition))
    }

    /// Counts an access, and logs it as an event if the policy wants one.
    #[inline]
    fn tell(
        &mut self,
        program: &Generation<Responder>,
        exit: &Exit,
        answer: &Answer<'_>,
        disposition: Disposition,
    ) {
        self.log.count(exit.index, exit.access, disposition);
        let seen = &self.shared.seen;
        // An access that there is no room to remember is logged: otherwise a guest could make the VM
        // forget accesses that it wants to hide.
        let touch = || seen.touch(program.number, exit.index, exit.access, disposition);
        let responder = &program.thing;
        if responder.is_event(exit, answer, disposition, || touch() != Touch::Again) {
            self.note(responder, exit, answer, disposition);
        }
    }

    /// Tells the watcher of an answer, if the gate has a watcher.
    #[inline]
    fn watch(
        &self,
        program: &Generation<Responder>,
        exit: &Exit,
        answer: &Answer<'_>,
        disposition: Disposition,
    ) {
        if let Some(watcher) = &self.shared.options.watcher {
            let rules = program.thing.variant().rules();
            watcher.told(&Told {
                vcpu: self.id,
                exit: *exit,
                disposition,
                origin: rules.origin(answer.decided_by()),
                log: program.thing.log(exit, answer),
            });
        }
    }

    /// Tells the watcher of an access for which the kernel's filter is then opened.
    fn watch_opened(&self, program: &Generation<Responder>, exit: &Exit, answer: &Answer<'_>) {
        if answer.response == Response::Open {
            self.watch(program, exit, answer, answer.disposition);
        }
    }

    /// Logs an access as an event, unless the limit on events holds the event back.
    #[inline(never)]
    fn note(
        &mut self,
        responder: &Responder,
        exit: &Exit,
        answer: &Answer<'_>,
        disposition: Disposition,
    ) {
        let Exit {
            index,
            access,
            reason,
            data,
        } = *exit;
        let time = calls::now();
        let Passage::Passes { held_back } = self.limit.ask(index, access, disposition, time) else {
            self.log.hold_back();
            return;
        };
        let options = &self.shared.options.events;
        let is_write = access == Access::Write;
        self.log.tell(&EventRecord {
            time,
            index,
            access,
            reason,
            disposition,
            value: (is_write && options.values == Values::Shown).then_some(data),
            rip: self.rip,
            origin: responder.variant().rules().origin(answer.decided_by()),
            held_back,
            digest: responder.program().digest(),
        });
    }
}

/// Leaves an exit to the VMM in the form in which the kernel made it.
pub(super) fn theirs(port: &mut impl Port, exit: &Exit) -> AnswerError {
    port.reply(Reply::value(exit.data));
    AnswerError::Theirs
}

/// The state that a vCPU had under the program before the current one.
///
/// If the kernel refuses the filter of a replacement, the replacement is withdrawn, and the program
/// before it is in force again. vCPUs that had taken over the new program then get back the state that
/// only the old program has. Each vCPU sets that state aside when the vCPU takes over a program on trial,
/// until the vCPU sees that the program is kept, or takes over another program. One set of state is enough:
/// each replacement is kept or withdrawn before the next one begins.
pub(super) struct Before {
    pub(super) program: Generation<Responder>,
    pub(super) state: VcpuState,
    /// The microcode device, if the next program has none.
    pub(super) microcode: Option<MicrocodeDevice>,
}

impl Before {
    /// Resets the state that was set aside, because the vCPU is reset while the next program is in force.
    pub(super) fn reset(&mut self) {
        self.state.reset(&self.program.thing);
        // A new device starts at the revision of its program.
        self.microcode = None;
    }

    /// Notes, in the state that was set aside, that the VMM has written an MSR of the vCPU.
    pub(super) fn msr_set_by_host(&mut self, index: MsrIndex) {
        self.state.msr_set_by_host(&self.program.thing, index);
    }

    /// Returns the previous program, and the vCPU's state under that program. `state` and `devices` are
    /// those that the vCPU has under the withdrawn program.
    pub(super) fn again(
        self,
        withdrawn: &Responder,
        state: &VcpuState,
        devices: &mut DeviceSet,
    ) -> (Generation<Responder>, VcpuState) {
        let state = state.back(withdrawn, &self.state, &self.program.thing);
        devices.back(self.microcode, &self.program.thing);
        (self.program, state)
    }
}
