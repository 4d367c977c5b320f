//! `KVM_RUN`: the exits that are the policy's are answered here, and the VMM sees the others.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use kvm_bindings::{KVM_EXIT_INTR, KVM_EXIT_X86_RDMSR, KVM_EXIT_X86_WRMSR};
use msrgate_kvm::gate::{AnswerError, Outcome};

use crate::process::Process;
use crate::shared::GENERAL;
use crate::signals;
use crate::sys::{self, Returned};
use crate::thing::Vcpu;

/// How long exits are answered before the VMM is to look for a kick by a signal, which may have come between two
/// `KVM_RUN`s.
const TURN: Duration = Duration::from_millis(1);

/// Set once the process has been seen to catch signals by which it may kick vCPUs.
static ARE_CAUGHT: AtomicBool = AtomicBool::new(false);

/// Runs a vCPU until it has an exit for the VMM. `enter` is its `KVM_RUN`.
pub(crate) fn run(
    process: &'static Process,
    vcpu: &Arc<Vcpu>,
    enter: impl Fn() -> Returned,
) -> Returned {
    if !vcpu.is_bound() {
        bind(process, vcpu);
    }
    let theirs = vcpu.page.valid_regs();
    let asks = vcpu.vm.rewinds();
    if asks {
        vcpu.page.set_valid_regs(theirs | GENERAL);
    }
    let returned = answered(process, vcpu, enter);
    if asks {
        vcpu.page.set_valid_regs(theirs);
    }
    returned
}

fn answered(process: &'static Process, vcpu: &Arc<Vcpu>, enter: impl Fn() -> Returned) -> Returned {
    let mut since = None;
    loop {
        let returned = enter();
        let is_ours = matches!(
            vcpu.page.exit_reason(),
            KVM_EXIT_X86_RDMSR | KVM_EXIT_X86_WRMSR
        );
        if returned != Returned::DONE || !is_ours {
            return returned;
        }
        if !answer(process, vcpu) {
            return returned;
        }
        let now = Instant::now();
        let begun = *since.get_or_insert(now);
        if now.duration_since(begun) >= TURN {
            if are_caught(process) {
                return turn(process, vcpu);
            }
            since = Some(now);
        }
    }
}

/// Answers an exit. Returns false if it is the VMM's.
fn answer(process: &'static Process, vcpu: &Arc<Vcpu>) -> bool {
    let mut gate = vcpu.gate();
    let Some(gate) = &mut *gate else {
        end(process, "a vCPU has lost its gate");
    };
    match vcpu.page.with_vcpu(|raw| gate.answer(raw)) {
        Ok(Outcome::Resume) => true,
        Err(AnswerError::Theirs) => false,
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

/// Lets the VMM look, as if a signal had come: the exit that was answered is completed first, so that it may read and
/// write the vCPU's registers.
fn turn(process: &'static Process, vcpu: &Arc<Vcpu>) -> Returned {
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
        // A debugger's step over the access.
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
        None => end(process, "a vCPU cannot be guarded, and the VMM is ended"),
    }
}

/// Says why, and ends the process. The helper thread does it: a vCPU's may be allowed no such call.
#[cold]
fn end(process: &'static Process, why: &str) -> ! {
    let why = why.to_owned();
    process.helper.ask::<()>(move || {
        sys::say(&why);
        sys::end_process();
    });
    sys::end_process()
}
