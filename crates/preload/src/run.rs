//! The loop that calls `KVM_RUN`. The gate answers the exits that the policy causes, and the VMM gets all
//! other exits.

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

/// The time for which the library answers exits before it returns to the VMM. The VMM may then notice a
/// signal that was handled between two calls of `KVM_RUN`, and that was meant to make `KVM_RUN` return.
const TURN: Duration = Duration::from_millis(1);

/// The time since the last answered exit after which the library supposes that a signal may have come
/// meanwhile, and returns to the VMM.
const LONG: Duration = Duration::from_micros(100);

/// The factor by which the pause between two checks whether the VMM catches signals is longer than the last
/// check. A VMM that catches no signals thus spends at most a hundredth of its time on these checks.
const QUESTIONS: u32 = 100;

/// The longest pause between two such checks. On a busy machine a check takes so long that the pause would otherwise be
/// seconds, and a VMM that begins to catch signals would not notice a kick meanwhile.
const LONGEST: Duration = Duration::from_millis(20);

/// True once the process was found to catch signals with which it may make `KVM_RUN` return.
static ARE_CAUGHT: AtomicBool = AtomicBool::new(false);

/// The step with which [`run`] begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum First {
    /// The library makes the `KVM_RUN` that the VMM asked for.
    Enter,
    /// The `KVM_RUN` that the VMM asked for has already returned, with an exit to look at.
    Exit,
}

/// The result of [`run`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ran {
    /// `KVM_RUN` returns to the VMM with this result.
    Returned(Returned),
    /// The kernel has run another vCPU, up to an exit: the VMM's descriptor is no longer that of the vCPU in
    /// the table.
    Other,
}

/// Runs a vCPU until there is an exit that the VMM has to handle. `enter` makes the `KVM_RUN` system call.
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
        let is_over = is_turn_over(process, answered, &mut since);
        // `is_turn_over` may have waited a second for a helper thread that ends. The VMM is then ended, and
        // not told that a signal has come.
        if answered == Answered::Again {
            check_helper(process);
        }
        if is_over {
            let returned = end_turn(process, vcpu);
            note_end_of_turn();
            return Ran::Returned(returned);
        }
    }
}

/// The times that a vCPU's thread notes while it answers exits.
#[derive(Clone, Copy)]
struct Times {
    /// The time when the thread last answered an exit.
    answered: Option<Instant>,
    /// The time before which the thread does not check again whether the process catches signals: the last
    /// check found none.
    uncaught: Option<Instant>,
    /// The time when the thread last checked that the helper thread is alive.
    checked: Option<Instant>,
}

thread_local! {
    static TIMES: Cell<Times> = const {
        Cell::new(Times { answered: None, uncaught: None, checked: None })
    };
}

/// Returns true if the library should return to the VMM, so that the VMM notices a signal that was handled
/// between two calls of `KVM_RUN`: otherwise the guest may run on without an exit. `since` is the time of
/// the first answer since the VMM called `KVM_RUN`.
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
        times.uncaught = Some(asked + ((asked - now) * QUESTIONS).clamp(TURN, LONGEST));
        *since = Some(asked);
    }
    TIMES.set(times);
    are_caught
}

/// Ends the VMM if the helper thread has ended, because nothing would then set the filter that the guest's
/// access waits for. A guest that waits repeats its access over and over, so the function checks at most
/// once in [`TURN`].
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

/// Notes the time at which the library returns to the VMM, so that time spent on the return does not count
/// for the next exit.
fn note_end_of_turn() {
    let mut times = TIMES.get();
    times.answered = Some(Instant::now());
    TIMES.set(times);
}

/// The result of passing an exit to the gate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answered {
    /// The next `KVM_RUN` gives the guest the gate's answer.
    ByGate,
    /// The guest executes the access again, because the helper thread is about to set a filter that allows
    /// the access.
    Again,
    /// The exit is left to the VMM, whose own filter or mask caused it.
    ByVmm,
}

/// Has the gate answer an exit for an MSR access, or leaves the exit to the VMM.
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

/// Makes the result with which `KVM_RUN` returns to the VMM as if a signal had interrupted it. The function
/// first completes the answered exit in the kernel, so that the VMM may read and write the vCPU's registers.
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

/// Prints the reason, and ends the process. The helper thread does both, as seccomp may forbid them to the
/// vCPU's thread. If the helper thread has ended, the calling thread does both.
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
