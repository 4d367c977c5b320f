//! Accesses that are let through and told of: by first touch, in an audit, each time.

use std::time::Duration;

use msrgate_filter::{Access, MsrIndex};

use super::clock;
use super::machine::{LSTAR, Machine, NOWHERE, STAR, Saw, on_each, policy};
use super::model;
use crate::gate::events::EventOptions;
use crate::gate::{FirstAccess, GateOptions, publisher};
use crate::measure::guest::Op::{Read, Write};

/// Each access comes once, and is then KVM's.
#[test]
fn first_touch_sees_each_access_once() {
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
        // At native speed from now on, but for what is refused.
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
fn an_audit_refuses_nothing_and_records_what_it_would() {
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

#[test]
fn all_accesses_are_seen_where_forwarding_is_sound() {
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

/// More scattered accesses than a filter has ranges: the filter opens for those that are waited for.
#[test]
fn a_guest_that_touches_everywhere_is_still_let_through() {
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

/// Queues of one event each.
fn one_event() -> GateOptions {
    GateOptions::new().events(EventOptions {
        queue: 1,
        ..EventOptions::default()
    })
}

fn touched(index: MsrIndex, access: Access) -> FirstAccess {
    FirstAccess { index, access }
}

/// Their events do not fit, the accesses pass by the gate from then on, and still they are known.
#[test]
fn what_was_touched_is_known_whatever_became_of_its_event() {
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

/// Each program knows its own: an audit what it would refuse, and one that tells of refusals none.
#[test]
fn what_was_touched_is_the_programs_in_force() {
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

/// What only the chosen variant wants to see is let through, too.
#[test]
fn a_variant_that_logs_has_its_filter_opened() {
    let text = "policy = 1\ndefault = 'deny'\n[[when]]\ncpu = { vendor = 'GenuineIntel' }\n\
        [when.msrs]\nIA32_STAR = { read = 'allow', write = 'allow', log = 'first' }";
    let program = super::machine::program(text);
    let mut machine = Machine::of_model(program, 1, GateOptions::new(), model::cpuid());
    let saw = machine.first().run(&[Write(STAR, 5), Read(STAR)]);
    assert_eq!(saw, [Saw::Written, Saw::Value(5)]);
}

/// A vCPU comes again and again to one register, which the filter closes each time for what others
/// touch: that is for longer than somebody else's filter is waited for.
#[test]
fn what_others_close_is_no_filter_of_somebody_elses() {
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
