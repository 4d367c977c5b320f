//! Tests of accesses that are logged and let through: first accesses, audit mode, and `log = "all"`.

use std::sync::mpsc::channel;
use std::thread;
use std::time::Duration;

use msrgate_filter::{Access, MsrIndex};

use super::clock;
use super::machine::{LSTAR, Machine, NOWHERE, STAR, Saw, on_each, policy};
use super::model;
use crate::gate::events::EventOptions;
use crate::gate::{FirstAccess, GateOptions, Publication, publisher};
use crate::measure::guest::Op::{Read, Write};

/// The first access to an MSR in one direction comes to the gate and is logged. KVM handles the later
/// accesses of that kind without the gate.
#[test]
fn first_access_is_logged_once() {
    let program = policy("default = 'allow'\nlog = 'first'", "IA32_LSTAR = 'none'");
    on_each(&program, 1, &GateOptions::new(), |machine| {
        let script = [
            Write(STAR, 5),
            Read(STAR),
            Write(STAR, 6),
            Read(STAR),
            Read(NOWHERE),
            Read(LSTAR),
        ];
        let vcpu = machine.first();
        let saw = vcpu.run(&script);
        let expected = [
            Saw::Written,
            Saw::Value(5),
            Saw::Written,
            Saw::Value(6),
            Saw::Fault,
            Saw::Fault,
        ];
        assert_eq!(saw, expected);
        // From now on only those accesses exit that the policy refuses.
        let before = vcpu.exits;
        assert_eq!(vcpu.run(&script), expected);
        assert_eq!(vcpu.exits, before + 1);
        let mut seen = Vec::new();
        machine.gate.events().unwrap().drain(|event| {
            seen.push((event.index, event.access, event.disposition.to_string()));
        });
        let seen: Vec<_> = seen
            .iter()
            .map(|(index, access, disposition)| format!("{access} {index} {disposition}"))
            .collect();
        assert_eq!(
            seen,
            [
                "write 0xc0000081 allow",
                "read 0xc0000081 allow",
                "read 0x12345678 allow",
                "read 0xc0000082 deny",
            ]
        );
    });
}

#[test]
fn audit_mode_allows_denied_access_and_logs_it_as_would_deny() {
    let program = policy("default = 'deny'\nmode = 'audit'", "IA32_STAR = 'rw'");
    on_each(&program, 1, &GateOptions::new(), |machine| {
        let vcpu = machine.first();
        let saw = vcpu.run(&[
            Write(STAR, 1),
            Write(LSTAR, 2),
            Read(LSTAR),
            Write(LSTAR, 3),
            Read(LSTAR),
        ]);
        assert_eq!(
            saw,
            [
                Saw::Written,
                Saw::Written,
                Saw::Value(2),
                Saw::Written,
                Saw::Value(3)
            ]
        );
        let mut seen = Vec::new();
        machine
            .gate
            .events()
            .unwrap()
            .drain(|event| seen.push((event.index, event.disposition.to_string())));
        assert_eq!(
            seen,
            [
                (LSTAR, "would-deny".to_owned()),
                (LSTAR, "would-deny".to_owned())
            ]
        );
    });
}

/// With `log = "first"` the first write that the policy would refuse becomes an event, although an allowed
/// write of the same MSR became one before. That holds for each vCPU's pins, and under each program.
#[test]
fn first_refused_write_is_logged_after_allowed_write_under_log_first() {
    for (mode, refusal) in [("enforce", "deny"), ("audit", "would-deny")] {
        let entry = "IA32_LSTAR = { read = 'allow', write = 'pin', log = 'first' }";
        let program = || policy(&format!("default = 'deny'\nmode = '{mode}'"), entry);
        on_each(&program(), 2, &GateOptions::new(), |machine| {
            machine.vcpus[0].run(&[Write(LSTAR, 1), Write(LSTAR, 1)]);
            machine.vcpus[1].run(&[Write(LSTAR, 2), Write(LSTAR, 3), Write(LSTAR, 4)]);
            machine.gate.replace(program()).unwrap();
            machine.vcpus[1].run(&[Write(LSTAR, 2), Write(LSTAR, 5)]);
            let mut seen = Vec::new();
            let mut events = machine.gate.events().unwrap();
            events.drain(|event| seen.push((event.vcpu.get(), event.disposition.to_string())));
            let of = |vcpu: u32, disposition: &str| (vcpu, disposition.to_owned());
            let expected = [of(0, "pin"), of(1, refusal), of(1, "pin"), of(1, refusal)];
            assert_eq!(seen, expected, "{mode}");
        });
    }
}

#[test]
fn log_all_logs_every_forwarded_access() {
    let entry = "IA32_LSTAR = { read = 'allow', write = 'allow', log = 'all' }";
    on_each(
        &policy("default = 'deny'", entry),
        1,
        &GateOptions::new(),
        |machine| {
            let vcpu = machine.first();
            let saw = vcpu.run(&[
                Write(LSTAR, 2),
                Read(LSTAR),
                Write(LSTAR, 1 << 62),
                Read(LSTAR),
            ]);
            assert_eq!(
                saw,
                [Saw::Written, Saw::Value(2), Saw::Fault, Saw::Value(2)]
            );
            let mut count = 0;
            machine.gate.events().unwrap().drain(|_| count += 1);
            assert_eq!(count, 4);
        },
    );
}

/// If there are more scattered first accesses than a filter has ranges, the filter is widened only
/// for the accesses for which vCPUs wait. All of the accesses are let through in the end.
#[test]
fn first_accesses_to_more_msrs_than_filter_has_ranges_are_all_let_through() {
    let program = policy("default = 'deny'\nmode = 'audit'", "");
    on_each(&program, 1, &GateOptions::new(), |machine| {
        let script: Vec<_> = (1..60)
            .map(|number| Read(MsrIndex::new(number << 24)))
            .chain([Write(STAR, 7), Read(STAR)])
            .collect();
        let vcpu = machine.first();
        let saw = vcpu.run(&script);
        assert_eq!(saw[script.len() - 2..], [Saw::Written, Saw::Value(7)]);
        assert!(saw[..59].iter().all(|saw| *saw == Saw::Fault));
        let mut count = 0;
        machine.gate.events().unwrap().drain(|_| count += 1);
        assert_eq!(count, 61);
    });
}

/// Returns options with queues of one event.
fn one_event() -> GateOptions {
    GateOptions::new().events(EventOptions {
        queue: 1,
        ..EventOptions::default()
    })
}

fn touched(index: MsrIndex, access: Access) -> FirstAccess {
    FirstAccess { index, access }
}

/// A first access whose event does not fit the queue is still listed, although the access bypasses the gate
/// from then on.
#[test]
fn first_accesses_lists_access_whose_event_was_dropped() {
    let program = policy("default = 'allow'\nlog = 'first'", "IA32_LSTAR = 'none'");
    on_each(&program, 1, &one_event(), |machine| {
        assert_eq!(machine.gate.first_accesses(), []);
        let wide = (0..40).map(|number| Read(MsrIndex::new(0x2_0000 + number)));
        let script: Vec<_> = [Write(STAR, 5), Read(STAR), Read(NOWHERE), Read(LSTAR)]
            .into_iter()
            .chain(wide)
            .collect();
        let vcpu = machine.first();
        vcpu.run(&script);
        vcpu.run(&script);
        let mut count = 0;
        machine.gate.events().unwrap().drain(|_| count += 1);
        assert_eq!(count, 1);
        let wide = (0..40).map(|number| touched(MsrIndex::new(0x2_0000 + number), Access::Read));
        let others = [
            touched(NOWHERE, Access::Read),
            touched(STAR, Access::Read),
            touched(STAR, Access::Write),
            touched(LSTAR, Access::Read),
        ];
        let expected: Vec<_> = wide.chain(others).collect();
        assert_eq!(machine.gate.first_accesses(), expected);
    });
}

/// Each program has its own list of first accesses. In audit mode the list has the accesses that the policy
/// would refuse. Under a program that only logs refusals the list is empty.
#[test]
fn first_accesses_lists_only_accesses_under_program_in_force() {
    let entry = "IA32_STAR = 'rw'";
    let audit = || policy("default = 'deny'\nmode = 'audit'", entry);
    on_each(&audit(), 1, &one_event(), |machine| {
        let script = [Write(STAR, 1), Read(LSTAR), Write(LSTAR, 2), Read(LSTAR)];
        let would = [touched(LSTAR, Access::Read), touched(LSTAR, Access::Write)];
        machine.first().run(&script);
        assert_eq!(machine.gate.first_accesses(), would);
        let denies = policy("default = 'deny'", entry);
        machine.gate.replace(denies).unwrap();
        machine.first().run(&script);
        assert_eq!(machine.gate.first_accesses(), []);
        machine.gate.replace(audit()).unwrap();
        machine.first().run(&[Read(LSTAR)]);
        assert_eq!(machine.gate.first_accesses(), would[..1]);
    });
}

/// A first access that only one variant of the program logs is let through, if that variant is the chosen
/// one.
#[test]
fn first_access_that_only_chosen_variant_logs_is_let_through() {
    let text = "policy = 1\ndefault = 'deny'\n[[when]]\ncpu = { vendor = 'GenuineIntel' }\n\
        [when.msrs]\nIA32_STAR = { read = 'allow', write = 'allow', log = 'first' }";
    let program = super::machine::program(text);
    let mut machine = Machine::of_model(program, 1, GateOptions::new(), model::cpuid());
    let saw = machine.first().run(&[Write(STAR, 5), Read(STAR)]);
    assert_eq!(saw, [Saw::Written, Saw::Value(5)]);
}

/// A vCPU accesses one MSR again and again, and each time the filter refuses the access again,
/// because it was widened for accesses to other MSRs instead. `answer` returns no error, even after
/// the time from which on the gate reports that the VM has another filter than the gate's.
#[test]
fn answer_returns_no_error_while_filter_is_widened_for_other_accesses() {
    let program = policy("default = 'allow'\nlog = 'first'", "");
    let options = GateOptions::new().clock(clock::now);
    let mut machine = Machine::of_model(program, 1, options, model::cpuid());
    let mut touched = 0;
    while clock::ahead() < Duration::from_secs(6) {
        assert_eq!(machine.first().run(&[Read(STAR)]), [Saw::Value(0)]);
        let shared = &machine.gate.shared;
        shared.opened.keep_only(&[]);
        touched += 1;
        let other = MsrIndex::new(touched);
        shared.opened.ask(0, other, Access::Read).unwrap();
        publisher::publish(shared);
        clock::advance(Duration::from_millis(200));
    }
    assert!(machine.first().exits >= touched as usize);
}

/// Each filter is set while the vCPU's thread asks for it, as by a publisher that runs at once on the
/// processor of that thread. The guest's access is denied again and again for six seconds, but each time by
/// another filter. So `answer` does not report that the VM has another filter than the gate's.
#[test]
fn answer_returns_no_error_if_filter_is_set_while_vcpu_asks_for_it() {
    let program = policy("default = 'allow'\nlog = 'first'", "");
    let options = GateOptions::new()
        .clock(clock::now)
        .publish_by(Publication::set);
    let mut machine = Machine::of_model(program, 1, options, model::cpuid());
    let mut touched = 0;
    while clock::ahead() < Duration::from_secs(6) {
        assert_eq!(machine.first().run(&[Read(STAR)]), [Saw::Value(0)]);
        let shared = &machine.gate.shared;
        shared.opened.keep_only(&[]);
        touched += 1;
        // Another first access has the filter set without this one.
        let other = MsrIndex::new(touched);
        shared.opened.ask(0, other, Access::Read).unwrap();
        clock::advance(Duration::from_millis(200));
    }
}

/// If the options say so, the gate hands the filters for first accesses to a thread of the VMM's, and starts
/// no thread of its own.
#[test]
fn filter_set_by_thread_of_vmm_lets_first_access_through() {
    let (hand_over, handed_over) = channel();
    let options = GateOptions::new().publish_by(move |publication| {
        let _ = hand_over.send(publication);
    });
    let program = policy("default = 'allow'\nlog = 'first'", "");
    let mut machine = Machine::of_model(program, 1, options, model::cpuid());
    assert!(machine.gate.publisher.lock().unwrap().is_none());
    let sets = thread::spawn(move || handed_over.into_iter().map(Publication::set).count());
    let saw = machine
        .first()
        .run(&[Write(STAR, 5), Read(STAR), Read(STAR)]);
    assert_eq!(saw, [Saw::Written, Saw::Value(5), Saw::Value(5)]);
    drop(machine);
    // Reads and writes are two kinds.
    assert_eq!(sets.join().unwrap(), 2);
}
