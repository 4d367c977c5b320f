//! The loop of `KVM_RUN`. The gate answers the policy's exits here, and the VMM gets all others.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use kvm_bindings::{KVM_EXIT_INTR, KVM_EXIT_X86_RDMSR, KVM_EXIT_X86_WRMSR};
use msrgate_kvm::gate::{AnswerError, Outcome};

use crate::helper::NO_HELPER;
use crate::process::Process;
use crate::signals;
use crate::sys::{self, Returned};
use crate::thing::Vcpu;

/// The time for which the library answers exits before it returns to the VMM. The VMM may then notice a kick
/// by a signal that came between two `KVM_RUN`s.
const TURN: Duration = Duration::from_millis(1);

/// The time since the last answer after which an exit may have taken so long that a kick has come meanwhile.
const LONG: Duration = Duration::from_micros(100);

/// The least time between two questions for caught signals, in the time that the last question has taken. A VMM that
/// catches none pays a hundredth of its time for them. One that begins to catch signals while its guest makes nothing
/// but answered accesses is asked within that time.
const QUESTIONS: u32 = 100;

/// True once the process was found to catch signals with which it may kick vCPUs.
static ARE_CAUGHT: AtomicBool = AtomicBool::new(false);

/// The step with which [`run`] begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum First {
    /// The `KVM_RUN` that the VMM asked for.
    Enter,
    /// The exit with which that `KVM_RUN` has already returned.
    Exit,
}

/// The result of [`run`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ran {
    /// The result for the VMM.
    Returned(Returned),
    /// The kernel has run another vCPU than this one, up to an exit: the descriptor is that vCPU's by now.
    Other,
}

/// Runs a vCPU until it has an exit for the VMM. `enter` makes the `KVM_RUN` system call.
pub(crate) fn run(
    process: &'static Process,
    vcpu: &Arc<Vcpu>,
    mut first: First,
    enter: impl Fn() -> Returned,
) -> Ran {
    if !vcpu.is_bound() {
        let is_ours = is_msr_exit(vcpu);
        bind(process, vcpu);
        if is_ours {
            // The gate has withdrawn an access that it saw too late: the guest executes it again.
            first = First::Enter;
        }
        // A kick that was handled meanwhile has come after the VMM last looked for one.
        if first == First::Enter && are_caught(process) {
            vcpu.page.interrupt();
            return Ran::Returned(Returned::error(libc::EINTR));
        }
    }
    answered(process, vcpu, first, enter)
}

#[inline]
fn is_msr_exit(vcpu: &Vcpu) -> bool {
    matches!(
        vcpu.page.exit_reason(),
        KVM_EXIT_X86_RDMSR | KVM_EXIT_X86_WRMSR
    )
}

fn answered(
    process: &'static Process,
    vcpu: &Arc<Vcpu>,
    mut first: First,
    enter: impl Fn() -> Returned,
) -> Ran {
    let mut since = None;
    loop {
        if first == First::Enter {
            vcpu.page.mark();
            let returned = enter();
            let is_other = vcpu.page.take_mark();
            if returned != Returned::DONE {
                return Ran::Returned(returned);
            }
            if is_other {
                return Ran::Other;
            }
        }
        first = First::Enter;
        if !is_msr_exit(vcpu) {
            return Ran::Returned(Returned::DONE);
        }
        let answered = answer(process, vcpu);
        if answered == Answered::ByVmm {
            return Ran::Returned(Returned::DONE);
        }
        if answered == Answered::Again {
            check_helper(process);
        }
        if is_turn_over(process, answered, &mut since) {
            let returned = end_turn(process, vcpu);
            note_end_of_turn();
            return Ran::Returned(returned);
        }
    }
}

/// The times at which a thread last did something.
#[derive(Clone, Copy)]
struct Times {
    /// It answered an exit.
    answered: Option<Instant>,
    /// Until then it does not ask again for caught signals: the process catches none.
    uncaught: Option<Instant>,
    /// It found the helper thread alive.
    checked: Option<Instant>,
}

thread_local! {
    static TIMES: Cell<Times> = const {
        Cell::new(Times { answered: None, uncaught: None, checked: None })
    };
}

/// Returns true if the VMM should look for a kick that may have been handled between two `KVM_RUN`s: the guest may make
/// no further exit. `since` is the time of the first answer within this `KVM_RUN` of the VMM's.
fn is_turn_over(
    process: &'static Process,
    answered: Answered,
    since: &mut Option<Instant>,
) -> bool {
    let now = Instant::now();
    let mut times = TIMES.get();
    let begun = *since.get_or_insert(now);
    // The time since the last answer has all of this exit, also if the thread had to wait for a processor. It may have
    // the guest's time, too: then exits are so rare that a return to the VMM costs little.
    let is_long = times.answered.is_none_or(|last| now - last >= LONG);
    times.answered = Some(now);
    let is_over = (answered == Answered::Again || is_long || now - begun >= TURN)
        && times.uncaught.is_none_or(|until| now >= until);
    let are_caught = is_over && are_caught(process);
    if is_over && !are_caught {
        let asked = Instant::now();
        times.uncaught = Some(asked + TURN.max((asked - now) * QUESTIONS));
        *since = Some(asked);
    }
    TIMES.set(times);
    are_caught
}

/// Ends the VMM if the helper thread has ended: the guest would wait for its filter for ever. A waiting guest executes
/// its access again and again, so the function looks once in the time of a turn.
fn check_helper(process: &'static Process) {
    let now = Instant::now();
    let mut times = TIMES.get();
    if times.checked.is_some_and(|when| now - when < TURN) {
        return;
    }
    times.checked = Some(now);
    TIMES.set(times);
    if process.helper.has_ended() {
        end(process, &format!("{NO_HELPER}, and the VMM is ended"));
    }
}

/// Notes the end of a turn: the time that it took is not the next exit's.
fn note_end_of_turn() {
    let mut times = TIMES.get();
    times.answered = Some(Instant::now());
    TIMES.set(times);
}

/// The answer to an exit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answered {
    /// The next `KVM_RUN` gives the guest the gate's answer.
    ByGate,
    /// The guest executes the access again, as its filter is about to be opened.
    Again,
    /// The exit belongs to the VMM.
    ByVmm,
}

/// Answers an exit, or leaves it to the VMM.
fn answer(process: &'static Process, vcpu: &Arc<Vcpu>) -> Answered {
    let mut gate = vcpu.gate();
    let Some(gate) = &mut *gate else {
        end(process, "a vCPU has lost its gate");
    };
    let mut answer = || vcpu.page.with_vcpu(|raw| gate.answer(raw));
    let answered = if vcpu.vm.rewinds() {
        vcpu.page.with_registers(answer)
    } else {
        answer()
    };
    match answered {
        Ok(Outcome::Resume) if vcpu.page.with_vcpu(|raw| gate.has_answer(raw)) => Answered::ByGate,
        Ok(Outcome::Resume) => Answered::Again,
        Err(AnswerError::Theirs) => Answered::ByVmm,
        Ok(Outcome::Kill(violation)) => end(process, &format!("{violation}; the VMM is ended")),
        Ok(Outcome::Handler(asked)) => end(
            process,
            &format!(
                "the policy names handler = \"{}\", and no VMM under exec has one",
                asked.handler()
            ),
        ),
        Err(error) => end(
            process,
            &format!("the policy cannot be kept up, and the VMM is ended: {error}"),
        ),
    }
}

fn are_caught(process: &'static Process) -> bool {
    if !ARE_CAUGHT.load(Ordering::Relaxed)
        && process.helper.ask(signals::are_caught).unwrap_or(true)
    {
        ARE_CAUGHT.store(true, Ordering::Relaxed);
    }
    ARE_CAUGHT.load(Ordering::Relaxed)
}

/// Returns to the VMM as if a signal had come. The answered exit is completed first, so that the VMM may
/// read and write the vCPU's registers.
fn end_turn(process: &'static Process, vcpu: &Arc<Vcpu>) -> Returned {
    let mut gate = vcpu.gate();
    let Some(gate) = &mut *gate else {
        end(process, "a vCPU has lost its gate");
    };
    if let Err(error) = vcpu.page.with_vcpu(|raw| gate.complete(raw)) {
        end(
            process,
            &format!("an answer was not taken, and the VMM is ended: {error}"),
        );
    }
    if vcpu.page.exit_reason() == KVM_EXIT_INTR {
        Returned::error(libc::EINTR)
    } else {
        // A debugger has stepped over the access.
        Returned::DONE
    }
}

#[cold]
fn bind(process: &'static Process, vcpu: &Arc<Vcpu>) {
    let one = Arc::clone(vcpu);
    let bound = process.helper.ask(move || one.bind());
    match bound {
        Some(Ok(())) => {}
        Some(Err(why)) => end(
            process,
            &format!("a vCPU cannot be guarded, and the VMM is ended: {why}"),
        ),
        None => end(process, &format!("{NO_HELPER}, and the VMM is ended")),
    }
}

/// Prints the reason, and ends the process. The helper thread does both, as the vCPU's thread may be forbidden
/// to; the vCPU's thread does, if the helper thread has ended.
#[cold]
pub(crate) fn end(process: &'static Process, why: &str) -> ! {
    let said = why.to_owned();
    process.helper.ask::<()>(move || {
        sys::say(&said);
        sys::end_process();
    });
    sys::say(why);
    sys::end_process()
}
