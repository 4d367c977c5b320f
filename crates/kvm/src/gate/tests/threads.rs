//! Tests of programs that are replaced while vCPUs run.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use msrgate_filter::MsrIndex;
use msrgate_policy::Program;

use super::machine::{FMASK, KERNEL_GS_BASE, LSTAR, Machine, STAR, Saw, policy};
use crate::measure::guest::Op::{Read, Write};

const SPARE: MsrIndex = MsrIndex::new(0x1_0000);
const REGISTER: MsrIndex = MsrIndex::new(0x1_0001);
const CSTAR: MsrIndex = MsrIndex::new(0xc000_0083);

const BOTH: &str = "IA32_CSTAR = 'rw'\nIA32_FMASK = 'none'\n\
    0x10001 = { register = { reset = 0, mask = '0xffffffff' } }\n";

fn one() -> Program {
    let entries = format!(
        "{BOTH}0x10000 = {{ read = {{ value = 1 }}, write = 'ignore' }}\n\
         IA32_STAR = 'rw'\nIA32_LSTAR = {{ read = 'allow', write = {{ mask = '0xffff' }} }}"
    );
    policy("default = 'deny'", &entries)
}

fn other() -> Program {
    let entries = format!(
        "{BOTH}0x10000 = {{ read = {{ value = 2 }}, write = 'deny' }}\n\
         IA32_STAR = 'none'\nIA32_LSTAR = {{ read = 'allow', write = 'ignore' }}\n\
         IA32_KERNEL_GS_BASE = 'rw'"
    );
    policy("default = 'deny'", &entries)
}

/// Two programs replace each other a thousand times while all vCPUs run. The vCPUs access MSRs for which the
/// two programs have the same rule, and MSRs for which they have different rules. The result of each access
/// is the result that one of the two programs gives.
#[test]
fn access_during_repeated_replace_is_answered_by_one_program() {
    let Some(mut machine) = Machine::new(one(), 4) else {
        return;
    };
    let gate = std::sync::Arc::clone(&machine.gate);
    let is_over = AtomicBool::new(false);
    let rounds: Vec<u64> = thread::scope(|scope| {
        let vcpus = machine.vcpus.iter_mut().zip(1_u64..).map(|(vcpu, id)| {
            let is_over = &is_over;
            scope.spawn(move || {
                let mut rounds = 0;
                // At least one round comes after the last replacement.
                while !is_over.load(Ordering::Relaxed) || rounds == 0 {
                    rounds += 1;
                    round(vcpu, id, rounds);
                }
                rounds
            })
        });
        let vcpus: Vec<_> = vcpus.collect();
        for number in 0..1000 {
            let program = if number % 2 == 0 { other() } else { one() };
            gate.replace(program).unwrap();
        }
        is_over.store(true, Ordering::Relaxed);
        vcpus.into_iter().map(|vcpu| vcpu.join().unwrap()).collect()
    });
    assert!(rounds.iter().all(|&rounds| rounds > 1), "{rounds:?}");
    // All accesses are now answered by the program that came last.
    for vcpu in &mut machine.vcpus {
        let saw = vcpu.run(&[
            Read(SPARE),
            Write(SPARE, 1),
            Write(STAR, 3),
            Write(KERNEL_GS_BASE, 4),
        ]);
        assert_eq!(saw, [Saw::Value(1), Saw::Written, Saw::Written, Saw::Fault]);
    }
}

fn round(vcpu: &mut super::machine::Vcpu, id: u64, number: u64) {
    let value = id << 8 | number & 0xff;
    let script = [
        Read(SPARE),
        Write(SPARE, 9),
        Write(CSTAR, value),
        Read(CSTAR),
        Read(FMASK),
        Write(FMASK, 1),
        Write(REGISTER, value),
        Read(REGISTER),
        Write(STAR, value),
        Read(STAR),
        Write(LSTAR, value),
        Read(LSTAR),
        Write(KERNEL_GS_BASE, value),
    ];
    let saw = vcpu.run(&script);
    assert!([Saw::Value(1), Saw::Value(2)].contains(&saw[0]), "{saw:?}");
    assert!([Saw::Written, Saw::Fault].contains(&saw[1]), "{saw:?}");
    assert_eq!(saw[2..4], [Saw::Written, Saw::Value(value)], "{saw:?}");
    assert_eq!(saw[4..6], [Saw::Fault, Saw::Fault], "{saw:?}");
    assert_eq!(saw[6..8], [Saw::Written, Saw::Value(value)], "{saw:?}");
    // Different programs may have answered the write and the read.
    assert!([Saw::Written, Saw::Fault].contains(&saw[8]), "{saw:?}");
    if saw[8] == Saw::Written {
        assert!([Saw::Value(value), Saw::Fault].contains(&saw[9]), "{saw:?}");
    }
    assert_eq!(saw[10], Saw::Written, "{saw:?}");
    assert!(
        matches!(saw[11], Saw::Value(seen) if seen <= 0xffff),
        "{saw:?}"
    );
    assert_ne!(saw[12], Saw::Value(0), "{saw:?}");
}

/// Programs that log first accesses replace each other. The filters that the publisher sets and the filters
/// that the replacements set come into force in the right order.
#[test]
fn filters_of_replace_and_of_first_accesses_come_into_force_in_right_order() {
    let traced = || policy("default = 'allow'\nlog = 'first'", "IA32_FMASK = 'none'");
    let plain = || policy("default = 'allow'\nlog = 'none'", "IA32_FMASK = 'none'");
    let Some(mut machine) = Machine::new(traced(), 2) else {
        return;
    };
    let gate = std::sync::Arc::clone(&machine.gate);
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        for (vcpu, id) in machine.vcpus.iter_mut().zip(1_u64..) {
            let is_over = &is_over;
            scope.spawn(move || {
                let mut number = 0;
                while !is_over.load(Ordering::Relaxed) {
                    number += 1;
                    let wild = MsrIndex::new(0x2000_0000 + number % 500);
                    let value = id << 8 | u64::from(number & 0xff);
                    let saw = vcpu.run(&[Write(STAR, value), Read(wild), Read(FMASK), Read(STAR)]);
                    let expected = [Saw::Written, Saw::Fault, Saw::Fault, Saw::Value(value)];
                    assert_eq!(saw, expected);
                }
            });
        }
        for number in 0..100 {
            gate.replace(if number % 2 == 0 { plain() } else { traced() })
                .unwrap();
        }
        is_over.store(true, Ordering::Relaxed);
    });
}

/// Programs that log first accesses replace each other without a pause. Each program starts with a
/// filter that lets no first access through. The publisher widens the filter between the replacements, and
/// the vCPU makes progress.
#[test]
fn vcpu_makes_progress_while_programs_that_log_first_accesses_replace_each_other() {
    let traced = |value: u32| {
        let entries = format!("0x10000 = {{ read = {{ value = {value} }}, write = 'deny' }}");
        policy("default = 'allow'\nlog = 'first'", &entries)
    };
    let programs = [traced(0), traced(1)];
    let Some(mut machine) = Machine::new(programs[1].clone(), 1) else {
        return;
    };
    let gate = std::sync::Arc::clone(&machine.gate);
    let (is_over, count) = (AtomicBool::new(false), AtomicU64::new(0));
    thread::scope(|scope| {
        scope.spawn(|| {
            for program in programs.iter().cycle() {
                if is_over.load(Ordering::Relaxed) {
                    break;
                }
                gate.replace(program.clone()).unwrap();
                count.fetch_add(1, Ordering::Relaxed);
            }
        });
        let mut rounds = 0;
        while rounds < 100 || count.load(Ordering::Relaxed) < 2 {
            let saw = machine.first().run(&[Write(STAR, rounds), Read(STAR)]);
            assert_eq!(saw, [Saw::Written, Saw::Value(rounds)]);
            rounds += 1;
        }
        is_over.store(true, Ordering::Relaxed);
    });
}
