//! Tests of what remains in force after the kernel has refused a filter: the old filter, the mask of exit
//! reasons, and the first accesses. In one test the kernel refuses the first filter of a gate.

use std::sync::Arc;

use super::super::machine::{Came, LSTAR, NOWHERE, STAR, Saw, TestGuest, Vcpu, policy, program};
use super::super::model;
use super::{ENOMEM, Kernel, SPARE, Script, Scripted, is_refused, of_model, old, on_each};
use crate::gate::{AnswerError, Gate, GateError, GateOptions, Outcome};
use crate::measure::guest::Op::{Read, Write};
use crate::probe::HostCaps;

/// After the kernel has refused the filter of a replacement, the gate still knows the first accesses under
/// the old program. The filter still lets these accesses through, and the mask of exit reasons is as before.
#[test]
fn refused_replace_keeps_filter_open_for_earlier_first_accesses() {
    let first = || policy("default = 'allow'\nlog = 'first'", "IA32_LSTAR = 'none'");
    let audit = || policy("default = 'deny'\nmode = 'audit'", "");
    on_each(&first(), 1, |machine, script| {
        let gate = Arc::clone(&machine.gate);
        let vcpu = machine.first();
        let accesses = [Write(STAR, 5), Read(NOWHERE)];
        vcpu.run(&accesses);
        let exits = vcpu.exits;
        let seen = script.replace(&gate, audit(), Kernel::Refuses, || {
            // The filter still lets the two accesses above through. It refuses the read of LSTAR,
            // which the new program logs.
            assert_eq!(vcpu.run(&accesses), [Saw::Written, Saw::Fault]);
            vcpu.guest.load(&[Read(LSTAR)]);
            assert!(matches!(vcpu.step(), Some(Outcome::Resume)));
            assert!(matches!(vcpu.step(), Some(Outcome::Resume)));
        });
        assert!(is_refused(&seen), "{seen:?}");
        while vcpu.step().is_some() {}
        assert_eq!(vcpu.saw(0, Read(LSTAR)), Saw::Fault);
        assert_eq!(vcpu.exits, exits + 3);
        assert_eq!(vcpu.run(&accesses), [Saw::Written, Saw::Fault]);
        assert_eq!(vcpu.exits, exits + 3);
        assert_eq!(
            dispositions(&gate),
            ["allow", "allow", "would-deny", "deny"]
        );
        // After a replacement that the kernel accepts, each first access is logged once, even an access that
        // comes before the kernel has accepted.
        let seen = script.replace(&gate, audit(), Kernel::Takes, || {
            vcpu.guest.load(&[Read(LSTAR)]);
            assert!(matches!(vcpu.step(), Some(Outcome::Resume)));
        });
        seen.unwrap();
        while vcpu.step().is_some() {}
        assert_eq!(vcpu.saw(0, Read(LSTAR)), Saw::Value(0));
        vcpu.run(&accesses);
        assert_eq!(dispositions(&gate), ["would-deny"; 3]);
    });
}

fn dispositions(gate: &Gate) -> Vec<String> {
    let mut dispositions = Vec::new();
    gate.events()
        .unwrap()
        .drain(|event| dispositions.push(event.disposition.to_string()));
    dispositions
}

/// If a policy under which no access exits stays in force, because the kernel refused a policy with
/// exits, accesses still cause no exit.
#[test]
fn refused_replace_keeps_mask_of_exit_reasons() {
    let quiet = policy("default = 'deny'\nlog = 'none'", "IA32_STAR = 'rw'");
    on_each(&quiet, 1, |machine, script| {
        let gate = Arc::clone(&machine.gate);
        let vcpu = machine.first();
        let accesses = [Read(STAR), Read(LSTAR), Read(SPARE)];
        let expected = [Saw::Value(0), Saw::Fault, Saw::Fault];
        assert_eq!(
            (vcpu.run(&accesses).as_slice(), vcpu.exits),
            (&expected[..], 0)
        );
        let seen = script.replace(&gate, old(), Kernel::Refuses, || {
            // The new program causes an exit for this access, and answers it.
            let saw = vcpu.run(&[Read(LSTAR), Read(SPARE)][1..]);
            assert_eq!((saw.as_slice(), vcpu.exits), (&[Saw::Value(7)][..], 1));
        });
        assert!(is_refused(&seen), "{seen:?}");
        assert_eq!(
            (vcpu.run(&accesses).as_slice(), vcpu.exits),
            (&expected[..], 1)
        );
    });
}

/// After the kernel has refused forty new programs, events under the old program still hold the name of its
/// policy file.
#[test]
fn refused_replace_keeps_policy_file_name_in_later_events() {
    on_each(&old(), 1, |machine, script| {
        script.refuse(40);
        for number in 0..40 {
            let other = policy("default = 'deny'", &format!("{:#x} = 'rw'", 0x100 + number));
            let seen = machine.gate.replace(other);
            assert!(is_refused(&seen), "{seen:?}");
        }
        let saw = machine.first().run(&[Write(LSTAR, 1), Write(LSTAR, 2)]);
        assert_eq!(saw, [Saw::Written, Saw::Fault]);
        let mut files = Vec::new();
        machine
            .gate
            .events()
            .unwrap()
            .drain(|event| files.push(event.file));
        assert_eq!(files, [Some("test.toml".into())]);
    });
}

/// If the kernel refuses a filter that the publisher sets, accesses that need this filter are errors, as
/// long as the program stays in force. The next program starts without that error.
#[test]
fn next_program_starts_without_publisher_error_of_old_program() {
    let audit = || policy("default = 'deny'\nmode = 'audit'", "");
    let first = || policy("default = 'allow'\nlog = 'first'", "");
    on_each(&audit(), 1, |machine, script| {
        let gate = Arc::clone(&machine.gate);
        let vcpu = machine.first();
        script.refuse(1);
        vcpu.guest.load(&[Read(STAR)]);
        let error = loop {
            let _ = vcpu.guest.resume();
            if let Err(error) = vcpu.guest.answer(&mut vcpu.msrs) {
                break error;
            }
        };
        assert_eq!(error, AnswerError::Publish(ENOMEM));
        let seen = script.replace(&gate, first(), Kernel::Refuses, || {
            vcpu.guest.load(&[Read(STAR)]);
            assert!(matches!(vcpu.step(), Some(Outcome::Resume)));
        });
        assert!(is_refused(&seen), "{seen:?}");
        let _ = vcpu.guest.resume();
        assert_eq!(vcpu.guest.answer(&mut vcpu.msrs).unwrap_err(), error);
        let seen = script.replace(&gate, first(), Kernel::Takes, || {
            vcpu.guest.load(&[Read(STAR)]);
            assert!(matches!(vcpu.step(), Some(Outcome::Resume)));
        });
        seen.unwrap();
        while vcpu.step().is_some() {}
        assert_eq!(vcpu.saw(0, Read(STAR)), Saw::Value(0));
    });
}

const WHENS: &str = "policy = 1\ndefault = 'deny'\n[msrs]\n\
    0x10000 = { read = { value = 1 }, write = 'deny' }\n\
    [[when]]\ncpu = { vendor = 'GenuineIntel' }\n[when.msrs]\n\
    0x10000 = { read = { value = 2 }, write = 'deny', override = true }\nIA32_STAR = 'rw'\n\
    [[when]]\ncpu = { vendor = 'AuthenticAMD' }\n[when.msrs]\nIA32_LSTAR = 'rw'";

/// If the kernel refuses the first filter of a VM, or the filter of the first vCPU's variant, the
/// VMM may repeat the failed call, `install` or `vcpu`, which then succeeds.
#[test]
fn install_and_vcpu_succeed_when_repeated_after_refused_filter() {
    let script = Script::default();
    let (vm, guests) = of_model(2);
    let vm = Arc::new(vm);
    let options = GateOptions::new();
    let host = HostCaps::on_paper();
    let gate = Gate::with_options(program(WHENS), &host, options).unwrap();
    let port = || Box::new(Scripted::new(Arc::clone(&vm), &script));
    script.refuse(1);
    let seen = gate.install_in(port());
    assert!(is_refused(&seen), "{seen:?}");
    gate.install_in(port()).unwrap();
    assert!(matches!(
        gate.install_in(port()),
        Err(GateError::InstalledTwice)
    ));
    let cpuid = model::cpuid();
    let mut guests = guests.into_iter();
    let mut closed = guests.next().unwrap();
    let mut other = cpuid.clone();
    other[0].ebx = 0x6874_7541;
    other[0].edx = 0x6974_6e65;
    other[0].ecx = 0x444d_4163;
    let in_force = || gate.shared.current.get().number;
    let before = in_force();
    for leaves in [&other, &cpuid] {
        script.refuse(1);
        let seen = gate.vcpu(0, leaves).map(drop);
        assert!(is_refused(&seen), "{seen:?}");
        // Every access is still a #GP. No access makes an exit, since there is no `VcpuGate` yet to answer
        // it.
        closed.load(&[Read(STAR), Read(SPARE)]);
        assert!(matches!(closed.resume(), Came::ToItsEnd));
        assert_eq!(closed.saw(0, Read(STAR)), Saw::Fault);
        assert_eq!(closed.saw(1, Read(SPARE)), Saw::Fault);
        assert_eq!(in_force(), before);
    }
    let mut vcpu = Vcpu {
        guest: guests.next().unwrap(),
        msrs: gate.vcpu(1, &cpuid).unwrap(),
        exits: 0,
    };
    vcpu.guest.reset(&mut vcpu.msrs).unwrap();
    let saw = vcpu.run(&[Read(SPARE), Read(STAR), Read(LSTAR)]);
    assert_eq!(saw, [Saw::Value(2), Saw::Value(0), Saw::Fault]);
    assert_ne!(in_force(), before);
}
