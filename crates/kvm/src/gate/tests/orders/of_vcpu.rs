//! Tests of the calls of `VcpuGate` in a wrong order.

use kvm_bindings::KVM_MAX_CPUID_ENTRIES;
use msrgate_filter::{Errno, MsrIndex, Reply};

use super::super::machine::{
    AnyGuest, Came, FMASK, LSTAR, Machine, STAR, Saw, TestGuest, Vcpu, on_each, policy,
};
use super::super::model;
use super::{HANDLED, HostCaps, SPARE, entries, with_leaf};
use crate::errno::CallErrno;
use crate::gate::events::{EventOptions, Rip};
use crate::gate::handle::mixed;
use crate::gate::{
    AnswerError, BadState, Device, DeviceContext, Gate, GateOptions, HandlerRequest, Outcome,
    StateError, VcpuError, VcpuGate, Written,
};
use crate::measure::guest::Op::{Read, Write};
use crate::measure::guest::Stop;

/// Returns the two vCPUs of a machine.
fn pair(machine: &mut Machine<AnyGuest>) -> (&mut Vcpu<AnyGuest>, &mut Vcpu<AnyGuest>) {
    let [one, other] = &mut machine.vcpus[..] else {
        panic!("two vCPUs");
    };
    (one, other)
}

/// Runs the vCPU to an exit for which the VMM's handler is to reply.
fn to_handler(vcpu: &mut Vcpu<AnyGuest>) -> HandlerRequest {
    vcpu.guest.load(&[Read(HANDLED)]);
    match vcpu.step() {
        Some(Outcome::Handler(asked)) => asked,
        other => panic!("{other:?}"),
    }
}

/// Makes a new `VcpuGate` for the first vCPU, without a reset.
fn unreset<G: TestGuest>(machine: &mut Machine<G>) -> &mut Vcpu<G> {
    let mut vcpu = machine.vcpus.remove(0);
    drop(vcpu.msrs);
    vcpu.msrs = machine.gate.vcpu(0, &machine.cpuid).unwrap();
    machine.vcpus.insert(0, vcpu);
    machine.first()
}

const fn is_not_reset(error: VcpuError) -> bool {
    matches!(error, VcpuError::NotReset { .. })
}

/// Without a reset of the vCPU, `answer` and `save` are errors: no exit gets its answer, and no
/// state is saved.
#[test]
fn answer_and_save_without_vcpu_reset_are_errors() {
    on_each(&entries(), 1, &GateOptions::new(), |machine| {
        let vcpu = unreset(machine);
        for op in [Read(SPARE), Read(HANDLED), Write(LSTAR, 0x1000)] {
            vcpu.guest.load(&[op]);
            assert!(matches!(vcpu.guest.resume(), Came::ToAnMsr));
            let seen = vcpu.guest.answer(&mut vcpu.msrs);
            assert!(
                matches!(seen, Err(AnswerError::Vcpu(error)) if is_not_reset(error)),
                "{seen:?}"
            );
            assert!(vcpu.step().is_none());
            assert_eq!(vcpu.saw(0, op), Saw::Fault);
        }
        let seen = vcpu.guest.save(&mut vcpu.msrs);
        assert!(
            matches!(seen, Err(StateError::Vcpu(error)) if is_not_reset(error)),
            "{seen:?}"
        );
    });
}

/// If the VMM resets the vCPU only after its first exit, KVM forgets that exit, and the guest
/// repeats the access.
#[test]
fn vcpu_reset_after_first_exit_makes_guest_repeat_access() {
    on_each(&entries(), 1, &GateOptions::new(), |machine| {
        let vcpu = unreset(machine);
        vcpu.guest.load(&[Read(SPARE)]);
        assert!(matches!(vcpu.guest.resume(), Came::ToAnMsr));
        vcpu.guest.answer(&mut vcpu.msrs).unwrap_err();
        vcpu.guest.reset(&mut vcpu.msrs).unwrap();
        while vcpu.step().is_some() {}
        assert_eq!(vcpu.saw(0, Read(SPARE)), Saw::Value(7));
    });
}

/// After a restore, a `VcpuGate` that was never reset answers the vCPU's exits.
#[test]
fn vcpu_gate_restored_without_reset_answers_exits_of_vcpu() {
    on_each(&entries(), 1, &GateOptions::new(), |machine| {
        let vcpu = machine.first();
        vcpu.run(&[Write(LSTAR, 0x1000)]);
        let saved = vcpu.guest.save(&mut vcpu.msrs).unwrap();
        let vcpu = unreset(machine);
        vcpu.guest.restore(&mut vcpu.msrs, &saved).unwrap();
        assert_eq!(vcpu.run(&[Write(LSTAR, 0x2000)]), [Saw::Fault]);
    });
}

/// A reset of a vCPU after a restore and before its first run is an error: the reset would silently drop the
/// restored pins and registers.
#[test]
fn vcpu_reset_after_restore_is_an_error_until_vcpu_runs() {
    on_each(&entries(), 1, &GateOptions::new(), |machine| {
        let vcpu = machine.first();
        vcpu.run(&[Write(LSTAR, 0x1000)]);
        let saved = vcpu.guest.save(&mut vcpu.msrs).unwrap();
        let vcpu = unreset(machine);
        vcpu.guest.reset(&mut vcpu.msrs).unwrap();
        vcpu.guest.restore(&mut vcpu.msrs, &saved).unwrap();
        let is_told = |seen: &Result<(), AnswerError>| {
            matches!(seen, Err(AnswerError::Vcpu(VcpuError::Restored { .. })))
        };
        let seen = vcpu.guest.reset(&mut vcpu.msrs);
        assert!(is_told(&seen), "{seen:?}");
        let seen = vcpu.guest.msr_set_by_host(&mut vcpu.msrs, LSTAR);
        assert!(is_told(&seen), "{seen:?}");
        // After a restore, another restore and a `save` are allowed.
        vcpu.guest.restore(&mut vcpu.msrs, &saved).unwrap();
        assert_eq!(vcpu.guest.save(&mut vcpu.msrs).unwrap(), saved);
        let seen = vcpu.guest.reset(&mut vcpu.msrs);
        assert!(is_told(&seen), "{seen:?}");
        assert_eq!(vcpu.run(&[Write(LSTAR, 0x2000)]), [Saw::Fault]);
        // Once the vCPU has run, a reset is allowed.
        vcpu.guest.reset(&mut vcpu.msrs).unwrap();
        assert_eq!(vcpu.run(&[Write(LSTAR, 0x2000)]), [Saw::Written]);
        vcpu.guest.msr_set_by_host(&mut vcpu.msrs, LSTAR).unwrap();
        assert_eq!(vcpu.run(&[Write(LSTAR, 0x3000)]), [Saw::Written]);
    });
}

/// A new `VcpuGate` may reset a vCPU that the old `VcpuGate` restored, as the message of the error
/// advises: the new `VcpuGate` has no pins to lose.
#[test]
fn new_vcpu_gate_resets_vcpu_that_old_one_restored() {
    on_each(&entries(), 1, &GateOptions::new(), |machine| {
        let vcpu = machine.first();
        vcpu.run(&[Write(LSTAR, 0x1000)]);
        let saved = vcpu.guest.save(&mut vcpu.msrs).unwrap();
        vcpu.guest.restore(&mut vcpu.msrs, &saved).unwrap();
        vcpu.guest.reset(&mut vcpu.msrs).unwrap_err();
        let vcpu = unreset(machine);
        vcpu.guest.reset(&mut vcpu.msrs).unwrap();
        assert_eq!(vcpu.run(&[Write(LSTAR, 0x2000)]), [Saw::Written]);
    });
}

/// A refused restore leaves the vCPU's state unchanged: the state that an earlier restore gave the vCPU is
/// still protected from a reset.
#[test]
fn refused_vcpu_restore_keeps_state_of_earlier_restore() {
    on_each(&entries(), 1, &GateOptions::new(), |machine| {
        let vcpu = machine.first();
        vcpu.run(&[Write(LSTAR, 0x1000)]);
        let saved = vcpu.guest.save(&mut vcpu.msrs).unwrap();
        // This reset leaves the vCPU with an interrupted `KVM_RUN`, as a kick does.
        vcpu.guest.reset(&mut vcpu.msrs).unwrap();
        vcpu.guest.restore(&mut vcpu.msrs, &saved).unwrap();
        let other = policy(
            "default = 'deny'",
            "IA32_STAR = { read = 'allow', write = 'pin' }",
        );
        let other = Machine::of_model(other, 1, GateOptions::new(), model::cpuid()).first_saved();
        vcpu.guest.restore(&mut vcpu.msrs, &other).unwrap_err();
        let seen = vcpu.guest.reset(&mut vcpu.msrs);
        assert!(
            matches!(seen, Err(AnswerError::Vcpu(VcpuError::Restored { .. }))),
            "{seen:?}"
        );
        assert_eq!(vcpu.run(&[Write(LSTAR, 0x2000)]), [Saw::Fault]);
    });
}

/// A second `VcpuGate` that a VMM makes for one vCPU under another id is an error while the first one
/// exists: each of the two would know only some of the vCPU's pins.
#[test]
fn second_vcpu_gate_of_same_vcpu_is_an_error_until_first_is_dropped() {
    on_each(&entries(), 1, &GateOptions::new(), |machine| {
        let mut other = machine.gate.vcpu(7, &machine.cpuid).unwrap();
        let vcpu = machine.first();
        let seen = vcpu.guest.reset(&mut other);
        assert!(
            matches!(seen, Err(AnswerError::Vcpu(VcpuError::TiedTwice { .. }))),
            "{seen:?}"
        );
        let saved = vcpu.guest.save(&mut vcpu.msrs).unwrap();
        let seen = vcpu.guest.restore(&mut other, &saved);
        assert!(
            matches!(seen, Err(StateError::Vcpu(VcpuError::TiedTwice { .. }))),
            "{seen:?}"
        );
        let old = std::mem::replace(&mut vcpu.msrs, other);
        drop(old);
        vcpu.guest.restore(&mut vcpu.msrs, &saved).unwrap();
        assert_eq!(vcpu.run(&[Read(SPARE)]), [Saw::Value(7)]);
    });
}

/// If a VMM passes the `kvm_run` of the right vCPU with a wrong file descriptor, the reset fails.
/// The next reset, with the right file descriptor, succeeds.
#[test]
fn vcpu_reset_after_failed_vcpu_reset_succeeds() {
    let Some(mut machine) = Machine::new(entries(), 1) else {
        return;
    };
    let vcpu = unreset(&mut machine);
    let nothing = std::fs::File::open("/dev/null").unwrap();
    let mut other = mixed(&nothing, vcpu.guest.vcpu_mut());
    vcpu.msrs.reset(&mut other).unwrap_err();
    vcpu.msrs.reset(vcpu.guest.vcpu_mut()).unwrap();
    assert_eq!(vcpu.run(&[Read(SPARE)]), [Saw::Value(7)]);
}

/// After a refused restore, a reset of the vCPU succeeds: there is no restored state that the reset
/// would drop.
#[test]
fn vcpu_reset_after_refused_restore_succeeds() {
    on_each(&entries(), 1, &GateOptions::new(), |machine| {
        let vcpu = unreset(machine);
        vcpu.guest.restore(&mut vcpu.msrs, b"none").unwrap_err();
        vcpu.guest.reset(&mut vcpu.msrs).unwrap();
        assert_eq!(vcpu.run(&[Read(SPARE)]), [Saw::Value(7)]);
    });
}

#[test]
fn msr_set_by_host_before_vcpu_reset_is_an_error() {
    on_each(&entries(), 2, &GateOptions::new(), |machine| {
        let vcpu = unreset(machine);
        let seen = vcpu.guest.msr_set_by_host(&mut vcpu.msrs, LSTAR);
        assert!(
            matches!(seen, Err(AnswerError::Vcpu(error)) if is_not_reset(error)),
            "{seen:?}"
        );
        let (one, other) = pair(machine);
        one.guest.reset(&mut one.msrs).unwrap();
        assert!(is_other(&other.guest.msr_set_by_host(&mut one.msrs, LSTAR)));
    });
}

/// If a VMM changes a vCPU's CPUID after the reset that checked it, the first exit is an error. KVM lets a
/// VMM change the CPUID until the vCPU runs.
#[test]
fn cpuid_changed_after_vcpu_reset_is_an_error_at_first_exit() {
    let Some(mut machine) = Machine::new(entries(), 1) else {
        return;
    };
    let given = machine.cpuid.clone();
    let vcpu = unreset(&mut machine);
    vcpu.msrs.reset(vcpu.guest.vcpu_mut()).unwrap();
    let changed = with_leaf(&given, 1, |leaf| leaf.eax ^= 0x10);
    let changed = kvm_bindings::CpuId::from_entries(&changed).unwrap();
    vcpu.guest.vcpu_mut().set_cpuid2(&changed).unwrap();
    for _ in 0..2 {
        TestGuest::load(&mut vcpu.guest, &[Read(SPARE)]);
        assert!(matches!(TestGuest::resume(&mut vcpu.guest), Came::ToAnMsr));
        let seen = vcpu.msrs.answer(vcpu.guest.vcpu_mut());
        assert!(
            matches!(seen, Err(AnswerError::Vcpu(VcpuError::OtherCpuid { .. }))),
            "{seen:?}"
        );
        assert!(matches!(TestGuest::resume(&mut vcpu.guest), Came::ToItsEnd));
        assert_eq!(vcpu.saw(0, Read(SPARE)), Saw::Fault);
    }
}

/// A restore of the vCPU asks KVM to put registers into `kvm_run`, as a reset does: the first event
/// after the restore has RIP.
#[test]
fn first_event_of_vcpu_restored_without_reset_has_rip() {
    let events = EventOptions {
        rip: Rip::Shown,
        ..EventOptions::default()
    };
    let options = GateOptions::new().events(events);
    let Some(mut machine) = Machine::with_options(entries(), 1, options) else {
        return;
    };
    let vcpu = machine.first();
    let saved = vcpu.msrs.save(vcpu.guest.vcpu_mut()).unwrap();
    vcpu.guest.vcpu_mut().get_kvm_run().kvm_valid_regs = 0;
    vcpu.msrs.restore(vcpu.guest.vcpu_mut(), &saved).unwrap();
    let denied = Read(FMASK);
    assert_eq!(vcpu.run(&[denied]), [Saw::Fault]);
    let site = vcpu.guest.site(denied);
    let mut rips = Vec::new();
    let mut reader = machine.gate.events().unwrap();
    reader.drain(|event| rips.push(event.rip));
    assert_eq!(rips, [Some(site)]);
}

/// After a refused restore of the vCPU, the vCPU still counts as not reset.
#[test]
fn refused_restore_does_not_count_as_vcpu_reset() {
    on_each(&entries(), 1, &GateOptions::new(), |machine| {
        let vcpu = unreset(machine);
        vcpu.guest.restore(&mut vcpu.msrs, b"none").unwrap_err();
        vcpu.guest.load(&[Read(SPARE)]);
        assert!(matches!(vcpu.guest.resume(), Came::ToAnMsr));
        vcpu.guest.answer(&mut vcpu.msrs).unwrap_err();
    });
}

/// A device whose first reset succeeds and whose later resets fail.
struct Once(bool);

impl Device for Once {
    fn read(&mut self, _: MsrIndex, _: &mut dyn DeviceContext) -> Result<Option<u64>, CallErrno> {
        Ok(Some(1))
    }

    fn write(
        &mut self,
        _: MsrIndex,
        _: u64,
        _: &mut dyn DeviceContext,
    ) -> Result<Written, CallErrno> {
        Ok(Written::Done)
    }

    fn reset(&mut self, _: &mut dyn DeviceContext) -> Result<(), CallErrno> {
        if std::mem::replace(&mut self.0, true) {
            return Err(CallErrno::Known(Errno::Einval));
        }
        Ok(())
    }

    fn save(&self) -> Vec<u8> {
        Vec::new()
    }

    fn restore(&mut self, _: &[u8]) -> Result<(), BadState> {
        Ok(())
    }
}

/// If a reset of the vCPU at a reboot fails half-way, and the VMM runs the vCPU despite the error,
/// the guest's accesses are #GPs.
#[test]
fn access_after_failed_vcpu_reset_faults() {
    let options = GateOptions::new().device("x", |_| Box::new(Once(false)));
    on_each(&entries(), 1, &options, |machine| {
        let vcpu = machine.first();
        assert_eq!(vcpu.run(&[Read(HANDLED)]), [Saw::Value(1)]);
        vcpu.guest.reset(&mut vcpu.msrs).unwrap_err();
        for op in [Read(SPARE), Read(HANDLED)] {
            vcpu.guest.load(&[op]);
            assert!(matches!(vcpu.guest.resume(), Came::ToAnMsr));
            vcpu.guest.answer(&mut vcpu.msrs).unwrap_err();
            assert!(vcpu.step().is_none());
            assert_eq!(vcpu.saw(0, op), Saw::Fault);
        }
        assert!(vcpu.guest.save(&mut vcpu.msrs).is_err());
    });
}

fn is_other<T: std::fmt::Debug>(seen: &Result<T, AnswerError>) -> bool {
    let Err(AnswerError::Vcpu(error)) = seen else {
        return false;
    };
    matches!(error, VcpuError::OtherVcpu { .. })
}

/// Each call of a `VcpuGate` for another vCPU of the VM is an error. The call changes the state of neither
/// vCPU, and the other vCPU's own `VcpuGate` can still answer that vCPU's exit.
#[test]
fn vcpu_gate_refuses_calls_for_other_vcpu() {
    on_each(&entries(), 2, &GateOptions::new(), |machine| {
        let (one, other) = pair(machine);
        assert_eq!(one.run(&[Write(LSTAR, 0x1000)]), [Saw::Written]);
        let script = [Write(LSTAR, 0x2000), Read(SPARE)];
        other.guest.load(&script);
        assert!(matches!(other.guest.resume(), Came::ToAnMsr));
        assert!(is_other(&other.guest.answer(&mut one.msrs).map(drop)));
        assert!(is_other(&other.guest.reset(&mut one.msrs)));
        let saved = one.guest.save(&mut one.msrs).unwrap();
        let seen = other.guest.save(&mut one.msrs).map(drop);
        assert!(matches!(seen, Err(StateError::Vcpu(_))), "{seen:?}");
        let seen = other.guest.restore(&mut one.msrs, &saved);
        assert!(matches!(seen, Err(StateError::Vcpu(_))), "{seen:?}");
        // The other vCPU's own `VcpuGate` can still answer the exit.
        let seen = other.guest.answer(&mut other.msrs);
        assert!(matches!(seen, Ok(Outcome::Resume)), "{seen:?}");
        while other.step().is_some() {}
        assert_eq!(other.saw(0, script[0]), Saw::Written);
        assert_eq!(other.saw(1, script[1]), Saw::Value(7));
        let asked = to_handler(one);
        let _asked = to_handler(other);
        let seen = other.guest.finish(&mut one.msrs, asked, Reply::value(1));
        assert!(is_other(&seen), "{seen:?}");
        assert!(other.step().is_none());
        assert_eq!(other.saw(0, Read(HANDLED)), Saw::Fault);
        assert_eq!(one.run(&[Write(LSTAR, 0x3000)]), [Saw::Fault]);
    });
}

/// If a VMM lets the wrong vCPU's `VcpuGate` answer an exit, and runs the vCPU on after the error, the guest
/// gets a #GP. The guest gets no value from the other vCPU's state.
#[test]
fn exit_answered_by_vcpu_gate_of_other_vcpu_is_a_fault() {
    on_each(&entries(), 2, &GateOptions::new(), |machine| {
        let (one, other) = pair(machine);
        other.guest.load(&[Read(SPARE)]);
        assert!(matches!(other.guest.resume(), Came::ToAnMsr));
        other.guest.answer(&mut one.msrs).unwrap_err();
        assert!(other.step().is_none());
        assert_eq!(other.saw(0, Read(SPARE)), Saw::Fault);
    });
}

/// A handler request of a vCPU in another VM is stale, even if the gates of both VMs have made equally many
/// requests.
#[test]
fn finish_of_handler_request_of_other_vm_is_refused_as_stale() {
    on_each(&entries(), 1, &GateOptions::new(), |machine| {
        let options = GateOptions::new();
        let model = Machine::of_model(entries(), 1, options, model::cpuid());
        let mut others = vec![model.any()];
        let kvm = Machine::new(entries(), 1);
        others.extend(kvm.map(Machine::any));
        for mut other in others {
            let asked = to_handler(machine.first());
            let other = other.first();
            let _asked = to_handler(other);
            let seen = other.guest.finish(&mut other.msrs, asked, Reply::value(1));
            assert_eq!(seen, Err(AnswerError::Stale));
            let seen = other.guest.answer(&mut machine.first().msrs).map(drop);
            assert!(is_other(&seen), "{seen:?}");
            assert!(other.step().is_none());
            assert_eq!(other.saw(0, Read(HANDLED)), Saw::Fault);
        }
    });
}

/// The handler request of a dropped `VcpuGate` does not answer the exit of the `VcpuGate` that follows it,
/// even if the two exits are equal.
#[test]
fn finish_of_handler_request_of_dropped_vcpu_gate_is_refused_as_stale() {
    on_each(&entries(), 1, &GateOptions::new(), |machine| {
        let asked = to_handler(machine.first());
        let vcpu = unreset(machine);
        vcpu.guest.reset(&mut vcpu.msrs).unwrap();
        let _asked = to_handler(vcpu);
        let seen = vcpu.guest.finish(&mut vcpu.msrs, asked, Reply::value(1));
        assert_eq!(seen, Err(AnswerError::Stale));
    });
}

/// A handler request is stale once a reset of the vCPU has made KVM forget the exit that the
/// request is for, or once `answer` was called again for the same exit.
#[test]
fn finish_of_handler_request_after_vcpu_reset_or_second_answer_is_refused_as_stale() {
    on_each(&entries(), 1, &GateOptions::new(), |machine| {
        let vcpu = machine.first();
        let asked = to_handler(vcpu);
        vcpu.guest.reset(&mut vcpu.msrs).unwrap();
        let seen = vcpu.guest.finish(&mut vcpu.msrs, asked, Reply::value(1));
        assert_eq!(seen, Err(AnswerError::Stale));
        let first = to_handler(vcpu);
        let Ok(Outcome::Handler(second)) = vcpu.guest.answer(&mut vcpu.msrs) else {
            panic!("no handler");
        };
        let seen = vcpu.guest.finish(&mut vcpu.msrs, first, Reply::value(1));
        assert_eq!(seen, Err(AnswerError::Stale));
        vcpu.guest
            .finish(&mut vcpu.msrs, second, Reply::value(2))
            .unwrap();
        assert!(vcpu.step().is_none());
        assert_eq!(vcpu.saw(0, Read(HANDLED)), Saw::Value(2));
    });
}

/// If the VMM runs the vCPU without a call of `answer`, the kernel completes the exit as if the access had
/// succeeded (S5.4): a read returns 0, and a write changes no register. Until the vCPU runs again, `save` is
/// an error.
#[test]
fn access_whose_exit_vmm_never_answers_reads_zero_or_writes_nothing() {
    on_each(&entries(), 1, &GateOptions::new(), |machine| {
        let vcpu = machine.first();
        let script = [Read(SPARE), Write(LSTAR, 0x1000), Read(LSTAR)];
        vcpu.guest.load(&script);
        for _ in 0..2 {
            assert!(matches!(vcpu.guest.resume(), Came::ToAnMsr));
            let seen = vcpu.guest.save(&mut vcpu.msrs);
            assert!(matches!(seen, Err(StateError::Unanswered)), "{seen:?}");
        }
        assert!(matches!(vcpu.guest.resume(), Came::ToItsEnd));
        let saw = [0, 1, 2].map(|step| vcpu.saw(step, script[step]));
        assert_eq!(saw, [Saw::Value(0), Saw::Written, Saw::Value(0)]);
        // The write that was not answered has not pinned the register.
        assert_eq!(vcpu.run(&[Write(LSTAR, 0x2000)]), [Saw::Written]);
    });
}

#[test]
fn answer_of_vcpu_without_msr_exit_is_an_error() {
    on_each(&entries(), 1, &GateOptions::new(), |machine| {
        let vcpu = machine.first();
        for _ in 0..2 {
            let seen = vcpu.guest.answer(&mut vcpu.msrs).map(drop);
            assert_eq!(seen, Err(AnswerError::NoExit));
            vcpu.run(&[Read(STAR)]);
        }
    });
}

/// If a VMM answers an exit again, after an error or because it has lost the handler request, the gate sees
/// the same exit as before. The first `answer` writes #GP as the reply, and that does not overwrite the
/// value that the guest wants to write.
#[test]
fn repeated_answer_to_exit_sees_same_exit() {
    /// A device whose first write fails.
    struct Failing(Option<u64>);
    impl Device for Failing {
        fn read(
            &mut self,
            _: MsrIndex,
            _: &mut dyn DeviceContext,
        ) -> Result<Option<u64>, CallErrno> {
            Ok(self.0)
        }

        fn write(
            &mut self,
            _: MsrIndex,
            value: u64,
            _: &mut dyn DeviceContext,
        ) -> Result<Written, CallErrno> {
            match self.0.replace(value) {
                None => Err(CallErrno::Known(Errno::Eintr)),
                Some(_) => Ok(Written::Done),
            }
        }

        fn reset(&mut self, _: &mut dyn DeviceContext) -> Result<(), CallErrno> {
            Ok(())
        }

        fn save(&self) -> Vec<u8> {
            Vec::new()
        }

        fn restore(&mut self, _: &[u8]) -> Result<(), BadState> {
            Ok(())
        }
    }
    let entries = "0x10000 = { read = 'deny', write = { handler = 'x' } }\n\
                   0x10001 = { read = { handler = 'y' }, write = { handler = 'y' } }";
    let options = GateOptions::new().device("y", |_| Box::new(Failing(None)));
    let program = policy("default = 'deny'", entries);
    let Some(mut machine) = Machine::with_options(program, 1, options) else {
        return;
    };
    let vcpu = machine.first();
    let device = HANDLED;
    let script = [Write(SPARE, 5), Write(device, 0x1000), Read(device)];
    vcpu.guest.load(&script).unwrap();
    vcpu.guest.vcpu_mut().run().map(drop).unwrap();
    for _ in 0..2 {
        let outcome = vcpu.msrs.answer(vcpu.guest.vcpu_mut());
        let Ok(Outcome::Handler(asked)) = outcome else {
            panic!("{outcome:?}");
        };
        assert_eq!(asked.value(), 5);
    }
    vcpu.guest.vcpu_mut().run().map(drop).unwrap();
    let failed = vcpu.msrs.answer(vcpu.guest.vcpu_mut());
    assert!(matches!(failed, Err(AnswerError::Call(_))), "{failed:?}");
    let again = vcpu.msrs.answer(vcpu.guest.vcpu_mut());
    assert!(matches!(again, Ok(Outcome::Resume)), "{again:?}");
    while vcpu.step().is_some() {}
    assert_eq!(vcpu.saw(0, script[0]), Saw::Fault);
    assert_eq!(vcpu.saw(2, script[2]), Saw::Value(0x1000));
}

/// A handle with the file descriptor of one vCPU and the `kvm_run` of another is an error: an
/// answer would write the registers of one vCPU for the exit of the other.
#[test]
fn answer_with_kvm_run_of_other_vcpu_is_an_error() {
    let Some(mut machine) = Machine::new(entries(), 2) else {
        return;
    };
    let [one, other] = &mut machine.vcpus[..] else {
        panic!("two vCPUs");
    };
    one.guest.load(&[Write(LSTAR, 0x1000)]).unwrap();
    assert!(matches!(one.guest.resume(), Ok(Stop::Msr(_))));
    let mut mixed = mixed(other.guest.vcpu(), one.guest.vcpu_mut());
    let seen = one.msrs.answer(&mut mixed).map(drop);
    assert!(is_other(&seen), "{seen:?}");
    assert_eq!(other.run(&[Read(LSTAR)]), [Saw::Value(0)]);
}

/// A reset and a restore of the vCPU are errors if KVM has no CPUID for the vCPU yet, or one that
/// differs in a part that the gate relies on. Differences that KVM makes itself are accepted.
#[test]
fn vcpu_reset_and_restore_refuse_other_cpuid_in_kvm() {
    let Some(host) = HostCaps::for_test() else {
        return;
    };
    let vm = host.create_vm().unwrap();
    let mut vcpu = vm.create_vcpu(0).unwrap();
    let kvm = host.open().unwrap();
    let mut cpuid = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).unwrap();
    let gate = Gate::new(policy("default = 'deny'", ""), &host).unwrap();
    gate.install(&vm).unwrap();
    let saved = {
        let mut msrs = gate.vcpu(1, &cpuid).unwrap();
        let mut other = vm.create_vcpu(1).unwrap();
        other.set_cpuid2(&cpuid).unwrap();
        msrs.reset(&mut other).unwrap();
        msrs.save(&mut other).unwrap()
    };
    let mut msrs = gate.vcpu(0, &cpuid).unwrap();
    let is_refused = |msrs: &mut VcpuGate, vcpu: &mut kvm_ioctls::VcpuFd| {
        let seen = msrs.reset(vcpu);
        let is_told = matches!(seen, Err(AnswerError::Vcpu(VcpuError::OtherCpuid { .. })));
        assert!(is_told || seen.is_ok(), "{seen:?}");
        let restored = msrs.restore(vcpu, &saved);
        assert_eq!(restored.is_err(), is_told, "{restored:?}");
        is_told
    };
    assert!(is_refused(&mut msrs, &mut vcpu), "none yet");
    let given = cpuid.as_slice().to_vec();
    let changes = [
        with_leaf(&given, 0, |leaf| leaf.ebx ^= 1),
        with_leaf(&given, 1, |leaf| leaf.eax ^= 0x10),
    ];
    for change in changes {
        cpuid.as_mut_slice().copy_from_slice(&change);
        vcpu.set_cpuid2(&cpuid).unwrap();
        assert!(is_refused(&mut msrs, &mut vcpu), "{change:?}");
    }
    // Each vCPU has its own APIC ID, and KVM itself changes bits 3 and 27 of ECX. The gate accepts these
    // differences.
    let change = with_leaf(&given, 1, |leaf| {
        leaf.ebx ^= 1 << 24;
        leaf.ecx ^= 1 << 3 | 1 << 27;
    });
    cpuid.as_mut_slice().copy_from_slice(&change);
    vcpu.set_cpuid2(&cpuid).unwrap();
    assert!(!is_refused(&mut msrs, &mut vcpu));
}
