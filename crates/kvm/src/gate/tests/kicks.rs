//! Tests of a vCPU that is kicked or interrupted around an exit: no exit is answered twice, and no kick
//! is lost.

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use kvm_bindings::{
    KVM_EXIT_DEBUG, KVM_GUESTDBG_ENABLE, KVM_GUESTDBG_SINGLESTEP, KVM_MAX_CPUID_ENTRIES,
    KVM_MP_STATE_RUNNABLE, KVM_MP_STATE_UNINITIALIZED, kvm_guest_debug, kvm_mp_state,
};
use msrgate_filter::{Access, MsrIndex, Reply};
use vmm_sys_util::signal::{Killable, SIGRTMIN, register_signal_handler};

use super::machine::{LSTAR, Machine, STAR, Saw, Vcpu, policy};
use crate::gate::{AnswerError, Gate, Outcome};
use crate::measure::guest::Op::{self, Read, Write};
use crate::measure::guest::{Apic, Guest, Stop};

const SPARE: MsrIndex = MsrIndex::new(0x1_0000);

impl Vcpu {
    /// Calls `KVM_RUN` once. Returns EINTR as an error if the call was interrupted.
    fn run_once(&mut self) -> Result<(), kvm_ioctls::Error> {
        self.guest.vcpu_mut().run().map(drop)
    }

    fn is_kicked(&mut self) -> bool {
        self.guest.vcpu_mut().get_kvm_run().immediate_exit != 0
    }
}

fn value_machine() -> Option<Machine> {
    let entries = "0x10000 = { read = { value = 7 }, write = 'ignore' }\n\
                   0x10001 = { read = { handler = 'x' }, write = 'deny' }\nIA32_STAR = 'rw'";
    Machine::new(policy("default = 'deny'", entries), 1)
}

#[test]
fn second_answer_to_exit_is_an_error() {
    let Some(mut machine) = value_machine() else {
        return;
    };
    let vcpu = machine.first();
    vcpu.guest.load(&[Read(SPARE)]).unwrap();
    vcpu.run_once().unwrap();
    assert!(matches!(
        vcpu.msrs.answer(vcpu.guest.vcpu_mut()),
        Ok(Outcome::Resume)
    ));
    let again = vcpu.msrs.answer(vcpu.guest.vcpu_mut());
    assert!(matches!(again, Err(AnswerError::NoExit)), "{again:?}");
    // A kick makes the next `KVM_RUN` take the reply without entering the guest (S5.6).
    vcpu.guest.vcpu_mut().set_kvm_immediate_exit(1);
    assert_eq!(vcpu.run_once().unwrap_err().errno(), libc::EINTR);
    let again = vcpu.msrs.answer(vcpu.guest.vcpu_mut());
    assert!(matches!(again, Err(AnswerError::NoExit)), "{again:?}");
    vcpu.guest.vcpu_mut().set_kvm_immediate_exit(0);
    while vcpu.step().is_some() {}
    assert_eq!(vcpu.saw(0, Read(SPARE)), Saw::Value(7));
}

/// If the VMM's handler never replies, or replies too late, the guest gets a #GP.
#[test]
fn access_faults_if_reply_of_handler_is_missing_or_late() {
    let other = MsrIndex::new(0x1_0001);
    let Some(mut machine) = value_machine() else {
        return;
    };
    let vcpu = machine.first();
    vcpu.guest
        .load(&[Read(other), Read(other), Read(SPARE)])
        .unwrap();
    let Some(Outcome::Handler(first)) = vcpu.step() else {
        panic!("no handler");
    };
    let Some(Outcome::Handler(second)) = vcpu.step() else {
        panic!("no handler");
    };
    let late = vcpu
        .msrs
        .finish(vcpu.guest.vcpu_mut(), first, Reply::value(1));
    assert_eq!(late, Err(AnswerError::Stale));
    vcpu.msrs
        .finish(vcpu.guest.vcpu_mut(), second, Reply::value(2))
        .unwrap();
    while vcpu.step().is_some() {}
    assert_eq!(vcpu.saw(0, Read(other)), Saw::Fault);
    assert_eq!(vcpu.saw(1, Read(other)), Saw::Value(2));
    assert_eq!(vcpu.saw(2, Read(SPARE)), Saw::Value(7));
}

/// A handler's reply is too late if a kick has made KVM complete the exit, even if no other exit has come.
#[test]
fn finish_of_handler_request_after_kick_is_refused_as_stale() {
    let Some(mut machine) = value_machine() else {
        return;
    };
    let vcpu = machine.first();
    let handled = MsrIndex::new(0x1_0001);
    vcpu.guest.load(&[Read(handled)]).unwrap();
    let Some(Outcome::Handler(asked)) = vcpu.step() else {
        panic!("no handler");
    };
    vcpu.guest.complete().unwrap();
    let late = vcpu
        .msrs
        .finish(vcpu.guest.vcpu_mut(), asked, Reply::value(1));
    assert_eq!(late, Err(AnswerError::Stale));
}

/// A kick that came before a rewind is still set after the rewind, and the guest repeats the access.
#[test]
fn rewind_keeps_kick_of_vcpu_that_came_before_rewind() {
    let Some(mut machine) = Machine::new(policy("default = 'deny'\nmode = 'audit'", ""), 1) else {
        return;
    };
    let vcpu = machine.first();
    vcpu.guest.load(&[Write(STAR, 5), Read(STAR)]).unwrap();
    vcpu.run_once().unwrap();
    vcpu.guest.vcpu_mut().set_kvm_immediate_exit(1);
    assert!(matches!(
        vcpu.msrs.answer(vcpu.guest.vcpu_mut()),
        Ok(Outcome::Resume)
    ));
    assert!(vcpu.is_kicked());
    assert_eq!(vcpu.run_once().unwrap_err().errno(), libc::EINTR);
    vcpu.guest.vcpu_mut().set_kvm_immediate_exit(0);
    while vcpu.step().is_some() {}
    assert_eq!(vcpu.saw(1, Read(STAR)), Saw::Value(5));
    let counted = machine.gate.counted();
    let writes =
        |count: &&crate::gate::events::Count| (count.index, count.access) == (STAR, Access::Write);
    assert_eq!(counted.counts.iter().filter(writes).count(), 1);
}

/// Returns a script of accesses, each of which is rewound, and a function that checks the guest's results.
fn touches(count: u32) -> (Vec<Op>, impl Fn(&Vcpu)) {
    let script: Vec<Op> = (0..count)
        .flat_map(|number| {
            let wild = MsrIndex::new(0x2000_0000 + number);
            [Write(STAR, number.into()), Read(wild), Read(STAR)]
        })
        .collect();
    let check = move |vcpu: &Vcpu| {
        for number in 0..count {
            let at = number as usize * 3;
            assert_eq!(vcpu.saw(at + 1, Read(SPARE)), Saw::Fault);
            assert_eq!(vcpu.saw(at + 2, Read(STAR)), Saw::Value(number.into()));
        }
    };
    (script, check)
}

/// No kick of another thread is lost at any moment of a rewind: before the gate takes `immediate_exit`,
/// while the gate has it, or after the gate has given it back. A `KVM_RUN` of the VMM that ends with EINTR
/// acknowledges each kick; a lost kick would never be acknowledged.
#[test]
fn rewind_keeps_kicks_of_vcpu_from_other_thread() {
    let Some(mut machine) = Machine::new(policy("default = 'deny'\nmode = 'audit'", ""), 1) else {
        return;
    };
    let vcpu = machine.first();
    let (script, check) = touches(200);
    vcpu.guest.load(&script).unwrap();
    // In a VMM, the thread that kicks has its own mapping of the vCPU's `kvm_run`. Here the thread
    // gets the address of `immediate_exit`.
    let flag = std::ptr::from_mut(&mut vcpu.guest.vcpu_mut().get_kvm_run().immediate_exit);
    let address = flag as usize;
    let acknowledged = AtomicU64::new(0);
    let is_over = AtomicU64::new(0);
    thread::scope(|scope| {
        let kicker = scope.spawn(|| kick_until(address, &acknowledged, &is_over));
        loop {
            match vcpu.run_once() {
                Ok(()) if is_msr_exit(vcpu) => {
                    let outcome = vcpu.msrs.answer(vcpu.guest.vcpu_mut());
                    assert!(matches!(outcome, Ok(Outcome::Resume)), "{outcome:?}");
                }
                Ok(()) => break,
                Err(error) => {
                    assert_eq!(error.errno(), libc::EINTR);
                    byte(address).store(0, Ordering::SeqCst);
                    acknowledged.fetch_add(1, Ordering::SeqCst);
                }
            }
        }
        is_over.store(1, Ordering::SeqCst);
        let kicks = kicker.join().unwrap();
        assert!(kicks > 10, "{kicks} kicks");
    });
    check(vcpu);
}

fn is_msr_exit(vcpu: &mut Vcpu) -> bool {
    let reason = vcpu.guest.vcpu_mut().get_kvm_run().exit_reason;
    [
        kvm_bindings::KVM_EXIT_X86_RDMSR,
        kvm_bindings::KVM_EXIT_X86_WRMSR,
    ]
    .contains(&reason)
}

/// Kicks the vCPU, waits for the acknowledgement, and kicks again, until `is_over` is set. Returns the
/// number of kicks.
fn kick_until(address: usize, acknowledged: &AtomicU64, is_over: &AtomicU64) -> u64 {
    let mut kicks = 0;
    while is_over.load(Ordering::SeqCst) == 0 {
        byte(address).store(1, Ordering::SeqCst);
        kicks += 1;
        let since = Instant::now();
        while acknowledged.load(Ordering::SeqCst) < kicks && is_over.load(Ordering::SeqCst) == 0 {
            assert!(
                since.elapsed() < Duration::from_secs(20),
                "kick {kicks} was lost"
            );
            thread::yield_now();
        }
        // Vary the delay between the kicks, so that they come at different moments of the vCPU's work.
        (0..kicks % 97 * 50).for_each(|_| std::hint::spin_loop());
    }
    kicks
}

fn byte(address: usize) -> &'static AtomicU8 {
    crate::gate::port::shared_byte(address)
}

/// Signals that come at any moment of a rewind interrupt system calls of the gate, or the guest, but each
/// access still gets its result.
#[test]
fn rewind_interrupted_by_signals_is_complete() {
    extern "C" fn nothing(_: i32, _: *mut libc::siginfo_t, _: *mut std::ffi::c_void) {}
    let Some(machine) = Machine::new(policy("default = 'deny'\nmode = 'audit'", ""), 1) else {
        return;
    };
    let signal = SIGRTMIN() + 9;
    register_signal_handler(signal, nothing).unwrap();
    let vcpu_thread = thread::spawn(move || {
        let mut machine = machine;
        let vcpu = machine.first();
        let (script, check) = touches(200);
        let saw = vcpu.run(&script);
        check(vcpu);
        saw.len()
    });
    while !vcpu_thread.is_finished() {
        let _ = vcpu_thread.kill(signal);
        thread::sleep(Duration::from_micros(200));
    }
    assert_eq!(vcpu_thread.join().unwrap(), 600);
}

/// If KVM has not completed an exit, `save` first makes KVM complete it with the reply that the gate has
/// given (S5.6).
#[test]
fn save_of_vcpu_completes_pending_exit() {
    let Some(mut machine) = value_machine() else {
        return;
    };
    let vcpu = machine.first();
    vcpu.guest.load(&[Read(SPARE), Read(LSTAR)]).unwrap();
    assert!(matches!(vcpu.step(), Some(Outcome::Resume)));
    let before = vcpu.guest.registers().unwrap();
    vcpu.msrs.save(vcpu.guest.vcpu_mut()).unwrap();
    let after = vcpu.guest.registers().unwrap();
    assert_eq!((after.rax, after.rdx), (7, 0));
    assert_eq!(after.rip, before.rip + 2);
    while vcpu.step().is_some() {}
    assert_eq!(vcpu.saw(0, Read(SPARE)), Saw::Value(7));
    assert_eq!(vcpu.saw(1, Read(LSTAR)), Saw::Fault);
}

/// If the last exit is not an MSR exit, `save` does not call `KVM_RUN`. The VMM itself completes such an
/// exit, and reads `kvm_run`: a `KVM_RUN` of `save` would overwrite the field `if_flag` of `kvm_run`.
#[test]
fn save_does_not_complete_exit_that_is_no_msr_exit() {
    let Some(mut machine) = value_machine() else {
        return;
    };
    let vcpu = machine.first();
    vcpu.run(&[Read(SPARE)]);
    vcpu.guest.vcpu_mut().get_kvm_run().if_flag = 0x5a;
    vcpu.msrs.save(vcpu.guest.vcpu_mut()).unwrap();
    assert_eq!(vcpu.guest.vcpu_mut().get_kvm_run().if_flag, 0x5a);
    vcpu.guest.complete().unwrap();
    assert_ne!(vcpu.guest.vcpu_mut().get_kvm_run().if_flag, 0x5a);
}

/// If a debugger steps the vCPU, `save` completes the access and succeeds. Afterwards `kvm_run` holds the
/// debug exit that reports the step over that access.
#[test]
fn save_of_stepped_vcpu_succeeds_and_puts_debug_exit_into_kvm_run() {
    let Some(mut machine) = value_machine() else {
        return;
    };
    let vcpu = machine.first();
    vcpu.guest.load(&[Read(SPARE)]).unwrap();
    let step = |control| kvm_guest_debug {
        control,
        ..kvm_guest_debug::default()
    };
    assert!(matches!(vcpu.step(), Some(Outcome::Resume)));
    let stepping = step(KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_SINGLESTEP);
    vcpu.guest.vcpu().set_guest_debug(&stepping).unwrap();
    let before = vcpu.guest.registers().unwrap();
    vcpu.msrs.save(vcpu.guest.vcpu_mut()).unwrap();
    let after = vcpu.guest.registers().unwrap();
    assert_eq!((after.rax, after.rip), (7, before.rip + 2));
    let exit = vcpu.guest.vcpu_mut().get_kvm_run().exit_reason;
    assert_eq!(exit, KVM_EXIT_DEBUG);
    vcpu.guest.vcpu().set_guest_debug(&step(0)).unwrap();
    while vcpu.step().is_some() {}
    assert_eq!(vcpu.saw(0, Read(SPARE)), Saw::Value(7));
}

/// A rewind leaves the interrupt fields of `kvm_run` as they were at the exit, although the rewind
/// queues and cancels a #GP. A VMM that injects interrupts itself relies on these fields.
#[test]
fn rewind_keeps_interrupt_fields_of_kvm_run() {
    let traced = policy("default = 'allow'\nlog = 'first'", "");
    let Some(mut machine) = Machine::new(traced, 1) else {
        return;
    };
    let vcpu = machine.first();
    vcpu.guest.load(&[Read(STAR)]).unwrap();
    vcpu.run_once().unwrap();
    let seen = |vcpu: &mut Vcpu| {
        let page = vcpu.guest.vcpu_mut().get_kvm_run();
        (page.if_flag, page.ready_for_interrupt_injection)
    };
    let page = vcpu.guest.vcpu_mut().get_kvm_run();
    (page.if_flag, page.ready_for_interrupt_injection) = (1, 1);
    let answer = vcpu.msrs.answer(vcpu.guest.vcpu_mut());
    assert!(matches!(answer, Ok(Outcome::Resume)), "{answer:?}");
    assert_eq!(seen(vcpu), (1, 1));
    while vcpu.step().is_some() {}
    assert_eq!(vcpu.saw(0, Read(STAR)), Saw::Value(0));
}

/// If a vCPU is reset while KVM still has to complete an exit, the reset guest sees no effect of that exit.
#[test]
fn vcpu_reset_makes_kvm_forget_pending_exit() {
    let Some(mut machine) = value_machine() else {
        return;
    };
    let handled = MsrIndex::new(0x1_0001);
    for access in [SPARE, LSTAR, handled] {
        let vcpu = machine.first();
        vcpu.guest.load(&[Read(access)]).unwrap();
        assert!(vcpu.step().is_some());
        let before = vcpu.guest.registers().unwrap();
        vcpu.msrs.reset(vcpu.guest.vcpu_mut()).unwrap();
        vcpu.guest.complete().unwrap();
        assert_eq!(vcpu.guest.registers().unwrap(), before);
        let events = vcpu.guest.vcpu().get_vcpu_events().unwrap();
        assert_eq!(
            (events.exception.injected, events.exception.pending),
            (0, 0)
        );
    }
}

/// If a vCPU is reset while it waits for SIPI and KVM still has to complete an exit, the vCPU goes on
/// waiting, and later sees no effect of that exit.
#[test]
fn vcpu_reset_while_waiting_for_sipi_makes_kvm_forget_pending_exit() {
    let Some(host) = crate::probe::HostCaps::for_test() else {
        return;
    };
    let entries = "0x10000 = { read = { value = 7 }, write = 'ignore' }";
    let gate = Gate::new(policy("default = 'deny'", entries), &host).unwrap();
    let mut guest = Guest::new(&host, Apic::X2apic).unwrap();
    gate.install(&**guest.vm()).unwrap();
    let cpuid = guest.vcpu().get_cpuid2(KVM_MAX_CPUID_ENTRIES).unwrap();
    let mut msrs = gate.vcpu(0, &cpuid).unwrap();
    msrs.reset(guest.vcpu_mut()).unwrap();
    guest.load(&[Read(SPARE)]).unwrap();
    assert!(matches!(guest.resume(), Ok(Stop::Msr(_))));
    assert!(matches!(msrs.answer(guest.vcpu_mut()), Ok(Outcome::Resume)));
    let state = |mp_state| kvm_mp_state { mp_state };
    let waits = state(KVM_MP_STATE_UNINITIALIZED);
    let before = guest.registers().unwrap();
    guest.vcpu().set_mp_state(waits).unwrap();
    // This `KVM_RUN` under `immediate_exit` completes no exit, because the vCPU waits for SIPI.
    guest.complete().unwrap();
    msrs.reset(guest.vcpu_mut()).unwrap();
    assert_eq!(guest.vcpu().get_mp_state().unwrap(), waits);
    guest
        .vcpu()
        .set_mp_state(state(KVM_MP_STATE_RUNNABLE))
        .unwrap();
    guest.complete().unwrap();
    assert_eq!(guest.registers().unwrap(), before);
    let exception = guest.vcpu().get_vcpu_events().unwrap().exception;
    assert_eq!((exception.injected, exception.pending), (0, 0));
}

/// If a vCPU is reset at its first exit, which has no answer yet, KVM forgets that exit: it can be neither
/// answered nor saved.
#[test]
fn vcpu_reset_makes_kvm_forget_unanswered_first_exit() {
    let Some(mut machine) = value_machine() else {
        return;
    };
    let vcpu = machine.first();
    vcpu.guest.load(&[Read(SPARE)]).unwrap();
    vcpu.run_once().unwrap();
    let before = vcpu.guest.registers().unwrap();
    vcpu.msrs.reset(vcpu.guest.vcpu_mut()).unwrap();
    let again = vcpu.msrs.answer(vcpu.guest.vcpu_mut());
    assert!(matches!(again, Err(AnswerError::NoExit)), "{again:?}");
    vcpu.msrs.save(vcpu.guest.vcpu_mut()).unwrap();
    assert_eq!(vcpu.guest.registers().unwrap(), before);
}

/// If a snapshot is restored on a vCPU that has run, as a fuzzer of guests does, KVM forgets the vCPU's
/// pending exit.
#[test]
fn vcpu_restore_makes_kvm_forget_pending_exit() {
    let Some(mut machine) = value_machine() else {
        return;
    };
    let vcpu = machine.first();
    vcpu.guest.load(&[Read(SPARE)]).unwrap();
    let saved = vcpu.msrs.save(vcpu.guest.vcpu_mut()).unwrap();
    let before = vcpu.guest.vcpu().get_regs().unwrap();
    assert!(matches!(vcpu.step(), Some(Outcome::Resume)));
    vcpu.guest.vcpu().set_regs(&before).unwrap();
    vcpu.msrs.restore(vcpu.guest.vcpu_mut(), &saved).unwrap();
    vcpu.guest.complete().unwrap();
    assert_eq!(vcpu.guest.vcpu().get_regs().unwrap(), before);
}

/// The handler request of one vCPU does not answer the exit of another, even if the two exits are
/// equal.
#[test]
fn finish_of_handler_request_of_other_vcpu_is_refused_as_stale() {
    let entries = "0x10001 = { read = { handler = 'x' }, write = 'deny' }";
    let Some(mut machine) = Machine::new(policy("default = 'deny'", entries), 2) else {
        return;
    };
    let handled = MsrIndex::new(0x1_0001);
    let mut asked = machine.vcpus.iter_mut().map(|vcpu| {
        vcpu.guest.load(&[Read(handled)]).unwrap();
        match vcpu.step() {
            Some(Outcome::Handler(asked)) => asked,
            _ => panic!("no handler"),
        }
    });
    let (first, _second) = (asked.next().unwrap(), asked.next().unwrap());
    drop(asked);
    let vcpu = &mut machine.vcpus[1];
    let answered = vcpu
        .msrs
        .finish(vcpu.guest.vcpu_mut(), first, Reply::value(1));
    assert_eq!(answered, Err(AnswerError::Stale));
}

/// If KVM puts registers and events into `kvm_run`, the VMM finds no #GP there after a rewind,
/// because the rewind has cancelled the #GP.
#[test]
fn kvm_run_has_no_gp_after_rewind_that_queued_and_cancelled_gp() {
    let Some(mut machine) = Machine::new(policy("default = 'deny'\nmode = 'audit'", ""), 1) else {
        return;
    };
    let shares = u64::from(kvm_bindings::KVM_SYNC_X86_REGS | kvm_bindings::KVM_SYNC_X86_EVENTS);
    let vcpu = machine.first();
    vcpu.guest.vcpu_mut().get_kvm_run().kvm_valid_regs = shares;
    vcpu.guest.load(&[Read(STAR)]).unwrap();
    assert!(matches!(vcpu.step(), Some(Outcome::Resume)));
    let run = vcpu.guest.vcpu_mut().get_kvm_run();
    assert_eq!(crate::gate::port::shared_exception(run), [0, 0]);
    // KVM_GET_VCPU_EVENTS must not show the #GP, either: a VMM may later give the result of that call back
    // to KVM.
    assert_eq!(run.kvm_dirty_regs, 0);
    let events = vcpu.guest.vcpu().get_vcpu_events().unwrap();
    let exception = events.exception;
    assert_eq!([exception.injected, exception.pending], [0, 0]);
    while vcpu.step().is_some() {}
    assert_eq!(vcpu.saw(0, Read(STAR)), Saw::Value(0));
}
