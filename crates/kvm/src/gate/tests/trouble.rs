//! Tests of failures: system calls that fail, a gate that is dropped, and a guest that tries to hide its
//! accesses.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use msrgate_filter::{Access, Errno, Filter, MsrIndex, ReasonMask};
use msrgate_policy::answer::Disposition;

use super::machine::{Came, LSTAR, Machine, NOWHERE, STAR, Saw, TestGuest, on_each, policy};
use super::model::{self, ModelGuest, ModelVm};
use crate::errno::CallErrno;
use crate::gate::seen::Touch;
use crate::gate::vm::VmPort;
use crate::gate::{AnswerError, GateOptions, Outcome, publisher};
use crate::install::InstallError;
use crate::measure::guest::Op::{Read, Write};

const SPARE: MsrIndex = MsrIndex::new(0x1_0000);

fn audit() -> msrgate_policy::Program {
    policy("default = 'deny'\nmode = 'audit'", "")
}

/// A VM whose kernel accepts `left` more filters, and then fails as `then` says.
struct Failing {
    vm: ModelVm,
    left: Arc<AtomicUsize>,
    then: Then,
}

#[derive(Clone, Copy)]
enum Then {
    Refuse,
    Panic,
}

impl VmPort for Failing {
    fn replace(&mut self, filter: &Filter, reasons: ReasonMask) -> Result<(), InstallError> {
        let left = self.left.load(Ordering::SeqCst);
        match (left, self.then) {
            (0, Then::Refuse) => Err(InstallError::Filter(CallErrno::Known(Errno::Efault))),
            (0, Then::Panic) => panic!("as the test wants it"),
            _ => {
                self.left.store(left - 1, Ordering::SeqCst);
                self.vm.replace(filter, reasons)
            }
        }
    }

    fn has_nested_state(&self) -> bool {
        false
    }

    fn has_shared_registers(&self) -> bool {
        true
    }
}

/// Makes a VM of the model, with a gate, whose kernel accepts only the first filter.
fn failing(then: Then) -> (Machine<ModelGuest>, Arc<AtomicUsize>) {
    let vm = ModelVm::new();
    let guests = vec![ModelGuest::new(&vm.vm)];
    let left = Arc::new(AtomicUsize::new(1));
    let port = Failing {
        vm,
        left: Arc::clone(&left),
        then,
    };
    let options = GateOptions::new();
    let machine = Machine::in_model(audit(), Box::new(port), guests, options, model::cpuid());
    (machine, left)
}

/// Runs an access that needs another filter than the one in force. Returns the error that ends the vCPU's
/// wait for that filter, or `None` if the access is let through.
fn end_of_wait<G: TestGuest>(machine: &mut Machine<G>) -> Option<AnswerError> {
    let vcpu = machine.first();
    vcpu.guest.load(&[Read(LSTAR)]);
    for _ in 0..1_000_000 {
        match vcpu.guest.resume() {
            Came::ToItsEnd => return None,
            Came::ToAnMsr => match vcpu.guest.answer(&mut vcpu.msrs) {
                Ok(_) => thread::yield_now(),
                Err(error) => {
                    // If the VMM runs the vCPU again despite the error, the guest gets a #GP.
                    assert!(matches!(vcpu.guest.resume(), Came::ToItsEnd));
                    assert_eq!(vcpu.saw(0, Read(LSTAR)), Saw::Fault);
                    return Some(error);
                }
            },
        }
    }
    panic!("the vCPU waits for ever");
}

#[test]
fn publisher_filter_that_kernel_refuses_is_an_error_until_replace_succeeds() {
    let (mut machine, left) = failing(Then::Refuse);
    let refused = AnswerError::Publish(CallErrno::Known(Errno::Efault));
    assert_eq!(end_of_wait(&mut machine), Some(refused));
    machine.gate.replace(audit()).unwrap_err();
    assert_eq!(end_of_wait(&mut machine), Some(refused));
    left.store(100, Ordering::SeqCst);
    machine.gate.replace(audit()).unwrap();
    assert_eq!(end_of_wait(&mut machine), None);
}

/// If the publisher has panicked, an access that needs another filter is an error, so no vCPU waits for the
/// publisher.
#[test]
fn answer_returns_error_after_publisher_panicked() {
    let (mut machine, _) = failing(Then::Panic);
    assert_eq!(end_of_wait(&mut machine), Some(AnswerError::Gone));
}

/// If the thread of the VMM's that is to set the filters has ended and drops a publication, an access that
/// needs another filter is an error.
#[test]
fn answer_returns_error_after_publication_was_dropped() {
    let options = GateOptions::new().publish_by(drop);
    let mut machine = Machine::of_model(audit(), 1, options, model::cpuid());
    assert_eq!(end_of_wait(&mut machine), Some(AnswerError::Gone));
}

/// The kernel keeps the filter of a dropped gate; an access that needs another filter is an error.
#[test]
fn answer_after_gate_is_dropped_is_an_error() {
    on_each(&audit(), 1, &GateOptions::new(), |machine| {
        assert_eq!(machine.first().run(&[Read(STAR)]), [Saw::Value(0)]);
        let other = model::cpuid();
        let options = GateOptions::new();
        let other = Machine::of_model(audit(), 1, options, other);
        drop(std::mem::replace(&mut machine.gate, other.gate));
        assert_eq!(end_of_wait(machine), Some(AnswerError::Gone));
    });
}

/// `save` is an error while an exit is unanswered: KVM would complete the exit as if the access had
/// succeeded (S5.4).
#[test]
fn save_with_unanswered_exit_is_an_error() {
    let program = policy(
        "default = 'deny'",
        "0x10000 = { read = { handler = 'mine' }, write = 'deny' }",
    );
    on_each(&program, 1, &GateOptions::new(), |machine| {
        let vcpu = machine.first();
        let script = [Read(LSTAR), Read(SPARE)];
        vcpu.guest.load(&script);
        assert!(matches!(vcpu.guest.resume(), Came::ToAnMsr));
        assert!(vcpu.guest.save(&mut vcpu.msrs).is_err());
        let outcome = vcpu.guest.answer(&mut vcpu.msrs).unwrap();
        assert!(matches!(outcome, Outcome::Resume), "{outcome:?}");
        let Some(Outcome::Handler(asked)) = vcpu.step() else {
            panic!("no handler");
        };
        assert!(vcpu.guest.save(&mut vcpu.msrs).is_err());
        let reply = msrgate_filter::Reply::value(3);
        vcpu.guest.finish(&mut vcpu.msrs, asked, reply).unwrap();
        assert!(vcpu.step().is_none());
        assert_eq!(vcpu.saw(0, script[0]), Saw::Fault);
        assert_eq!(vcpu.saw(1, script[1]), Saw::Value(3));
        vcpu.guest.save(&mut vcpu.msrs).unwrap();
    });
}

/// If a guest fills the table of first accesses by accessing every MSR, its later accesses are not hidden:
/// each of them is logged again.
#[test]
fn first_access_that_full_table_forgot_is_logged_again() {
    let program = policy("default = 'allow'\nlog = 'first'", "");
    on_each(&program, 1, &GateOptions::new(), |machine| {
        for index in 0..100_000 {
            let index = MsrIndex::new(index);
            machine
                .gate
                .shared
                .seen
                .touch(0, index, Access::Read, Disposition::Allowed);
        }
        assert_eq!(machine.first().run(&[Write(STAR, 5)]), [Saw::Written]);
        let mut count = 0;
        machine.gate.events().unwrap().drain(|_| count += 1);
        assert!(count >= 1, "{count}");
        // The next program has the whole table for its own first accesses.
        machine.gate.replace(audit()).unwrap();
        let number = machine.gate.shared.current.get().number;
        let seen = &machine.gate.shared.seen;
        let touches =
            [(); 2].map(|()| seen.touch(number, STAR, Access::Read, Disposition::Allowed));
        assert_eq!(touches, [Touch::First, Touch::Again]);
    });
}

/// If a first access was let through under one program, the next program logs the access again.
#[test]
fn next_program_logs_first_accesses_again_after_replace() {
    let program = policy("default = 'allow'\nlog = 'first'", "");
    on_each(&program, 1, &GateOptions::new(), |machine| {
        let script = [Write(STAR, 5), Read(NOWHERE)];
        machine.first().run(&script);
        machine.gate.replace(audit()).unwrap();
        machine.first().run(&script);
        let mut seen = Vec::new();
        machine
            .gate
            .events()
            .unwrap()
            .drain(|event| seen.push((event.index, event.disposition)));
        let expected = [
            (STAR, Disposition::Allowed),
            (NOWHERE, Disposition::Allowed),
            (STAR, Disposition::WouldDeny),
            (NOWHERE, Disposition::WouldDeny),
        ];
        assert_eq!(seen, expected);
    });
}

/// If a vCPU asks under one program that the filter let an access through, the request does not
/// widen the filter of the next program.
#[test]
fn request_under_old_program_does_not_widen_filter_of_next_program() {
    let program = policy("default = 'allow'\nlog = 'first'", "");
    on_each(&program, 1, &GateOptions::new(), |machine| {
        machine.gate.replace(audit()).unwrap();
        let shared = &machine.gate.shared;
        shared.opened.ask(0, STAR, Access::Read).unwrap();
        publisher::publish(shared);
        machine.first().run(&[Read(STAR)]);
        let mut dispositions = Vec::new();
        machine
            .gate
            .events()
            .unwrap()
            .drain(|event| dispositions.push(event.disposition));
        assert_eq!(dispositions, [Disposition::WouldDeny]);
    });
}

/// In audit mode the migration list has every register: a guest writes registers that the policy would
/// refuse, and a migration must not lose their values.
#[test]
fn migration_list_has_every_register_in_audit_mode() {
    on_each(&audit(), 1, &GateOptions::new(), |machine| {
        let listed = [LSTAR, MsrIndex::new(0x4b56_4d01)];
        assert_eq!(machine.gate.migration_list(&listed), listed);
    });
}
