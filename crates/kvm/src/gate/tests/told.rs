//! Tests of events when a guest causes a flood of events, or when the VMM does not read the events.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use allocation_counter::measure;
use msrgate_filter::{MsrIndex, Reply};
use msrgate_policy::Program;
use msrgate_policy::answer::Disposition;

use super::machine::{LSTAR, Machine, Saw, TestGuest, on_each, policy};
use super::model;
use crate::gate::events::{Event, EventOptions, Sink, VcpuDrops};
use crate::gate::{Gate, GateError, GateOptions, Outcome, VcpuId, paper};
use crate::measure::guest::Op::{Read, Write};
use crate::probe::HostCaps;

const SPARE: MsrIndex = MsrIndex::new(0x1_0000);

fn events(queue: usize, per_second: u32) -> GateOptions {
    GateOptions::new().events(EventOptions {
        queue,
        per_second,
        ..EventOptions::default()
    })
}

fn kills() -> Program {
    let entry = "0x10000 = { read = 'kill', write = 'deny' }";
    policy("default = 'deny'\nlog = 'none'", entry)
}

/// The event of a kill reaches the reader even if the guest has filled its queue and used up its limit
/// before the access that the policy kills.
#[test]
fn flood_of_events_does_not_hide_kill() {
    let program = policy(
        "default = 'deny'",
        "0x10000 = { read = 'kill', write = 'deny' }",
    );
    on_each(&program, 1, &events(4, 2), |machine| {
        let vcpu = machine.first();
        // These accesses use up every counter of the limit.
        let scattered = (0..500).map(|number| Read(MsrIndex::new(0x2_0000 + number * 0x101)));
        let script: Vec<_> = scattered.flat_map(|read| [read; 3]).collect();
        vcpu.run(&script);
        vcpu.run_to_kill(&[Read(SPARE)]).unwrap_err();
        let mut seen = Vec::new();
        let mut reader = machine.gate.events().unwrap();
        reader.drain(|event| seen.push((event.index, event.disposition)));
        assert_eq!(seen.len(), 5);
        assert_eq!(seen[4], (SPARE, Disposition::Killed));
        // Each access has an event that was read, or is counted as dropped or held back.
        let drops = reader.drops();
        assert_eq!(drops.len(), 1);
        assert_eq!(drops[0].dropped + drops[0].held_back + 4, 1500);
    });
}

/// If a VMM runs the vCPU on after each kill, the number of kill events is limited, and the kill events that
/// are held back are counted.
#[test]
fn repeated_kills_are_limited_and_counted() {
    on_each(&kills(), 1, &events(256, 10), |machine| {
        let vcpu = machine.first();
        for _ in 0..100 {
            vcpu.run_to_kill(&[Read(SPARE)]).unwrap_err();
        }
        let mut reader = machine.gate.events().unwrap();
        let mut seen = 0;
        let mut held_back = 0;
        reader.drain(|event| {
            seen += 1;
            held_back += u64::from(event.held_back);
        });
        let drops = reader.drops();
        assert_eq!(seen + drops[0].held_back, 100);
        // A new second of the limit may have begun since the last kill.
        assert!(seen < 100 && held_back <= drops[0].held_back, "{seen}");
    });
}

/// `drops` also counts the events that were held back at the end of a flood, which no later event reports.
/// This count is kept after the vCPU's `VcpuGate` is dropped.
#[test]
fn drops_counts_events_that_limit_held_back() {
    let program = policy("default = 'deny'", "");
    on_each(&program, 1, &events(1000, 100), |machine| {
        machine.first().run(&[Read(LSTAR); 400]);
        let mut reader = machine.gate.events().unwrap();
        let mut count = 0;
        reader.drain(|_| count += 1);
        let drops = reader.drops();
        assert_eq!(drops.len(), 1);
        assert_eq!((drops[0].vcpu, drops[0].dropped), (VcpuId::new(0), 0));
        assert!(drops[0].held_back > 0);
        assert_eq!(drops[0].held_back + count, 400);
        machine.vcpus.clear();
        reader.drain(|_| ());
        assert_eq!(reader.drops(), drops);
    });
}

#[derive(Clone, Default)]
struct Kept(Arc<Mutex<(Vec<Event>, Vec<VcpuDrops>)>>);

impl Sink for Kept {
    fn event(&mut self, event: &Event) {
        self.0.lock().unwrap().0.push(event.clone());
    }

    fn dropped(&mut self, drops: VcpuDrops) {
        self.0.lock().unwrap().1.push(drops);
    }
}

/// A sink gets the total number of lost events at the end, and not one report for each change.
#[test]
fn event_sink_gets_drops_at_end_and_at_most_once_a_second() {
    let program = policy("default = 'deny'", "");
    on_each(&program, 1, &events(1000, 10), |machine| {
        let kept = Kept::default();
        let sinks: Vec<Box<dyn Sink>> = vec![Box::new(kept.clone())];
        let began = std::time::Instant::now();
        let thread = machine.gate.events().unwrap().spawn(sinks).unwrap();
        for _ in 0..20 {
            machine.first().run(&[Read(LSTAR); 20]);
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        drop(thread.stop().unwrap());
        let seconds = usize::try_from(began.elapsed().as_secs()).unwrap();
        let kept = kept.0.lock().unwrap();
        let (events, drops) = &*kept;
        let last = drops.last().unwrap();
        assert_eq!(events.len() as u64 + last.held_back, 400);
        assert!(drops.len() <= 2 + seconds, "{drops:?}");
    });
}

/// If vCPUs are added and dropped again and again and no reader exists, the gate's memory does not grow.
#[test]
fn dropped_vcpu_gates_leave_no_memory_behind() {
    let program = policy("default = 'deny'", "");
    let gate = paper::gate(program, GateOptions::new()).unwrap();
    let cpuid = model::cpuid();
    drop(gate.vcpu(0, &cpuid).unwrap());
    let seen = measure(|| {
        for _ in 0..5000 {
            drop(gate.vcpu(0, &cpuid).unwrap());
        }
    });
    let one = measure(|| drop(gate.vcpu(0, &cpuid).unwrap())).bytes_max;
    assert!(
        seen.bytes_current.unsigned_abs() <= one,
        "{} of {one}",
        seen.bytes_current
    );
}

#[test]
fn too_long_event_queue_is_an_error() {
    let gate = |queue| {
        let program = policy("default = 'deny'", "");
        Gate::with_options(program, &HostCaps::on_paper(), events(queue, 1))
    };
    for queue in [usize::MAX, EventOptions::LONGEST_QUEUE + 1] {
        let made = gate(queue).map(drop);
        assert!(matches!(made, Err(GateError::Queue { .. })), "{made:?}");
    }
    for queue in [0, EventOptions::LONGEST_QUEUE] {
        let program = policy("default = 'deny'", "");
        let gate = paper::gate(program, events(queue, 1)).unwrap();
        drop(gate.vcpu(0, &model::cpuid()).unwrap());
    }
}

/// A sink that fails at every event, and panics at an event of [`SPARE`].
struct Broken(u64);

impl Sink for Broken {
    fn event(&mut self, event: &Event) {
        assert_ne!(event.index, SPARE, "the test wants this panic");
        self.0 += 1;
    }

    fn dropped(&mut self, _: VcpuDrops) {}

    fn failed(&self) -> u64 {
        self.0
    }
}

/// Waits until another thread has made `is_so` true.
fn wait_until(mut is_so: impl FnMut() -> bool) {
    while !is_so() {
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
}

#[test]
fn failures_of_event_sink_are_counted_while_thread_runs() {
    let program = policy("default = 'deny'", "");
    on_each(&program, 1, &events(1000, 10), |machine| {
        let reader = machine.gate.events().unwrap();
        let thread = reader.spawn(vec![Box::new(Broken(0))]).unwrap();
        assert_eq!((thread.failed(), thread.is_running()), (0, true));
        machine.first().run(&[Read(LSTAR); 2]);
        wait_until(|| thread.failed() == 2);
        assert!(thread.is_running());
        machine.first().run(&[Read(SPARE)]);
        wait_until(|| !thread.is_running());
        assert!(thread.stop().is_none());
    });
}

/// If a handler replies with a fault, the access is logged and counted once, as a refusal, like a device's
/// fault. If a handler replies with success, the access is not logged.
#[test]
fn reply_of_handler_is_logged_only_if_it_is_fault() {
    let program = policy(
        "default = 'deny'",
        "0x10000 = { read = { handler = 'mine' }, write = 'deny' }",
    );
    on_each(&program, 1, &GateOptions::new(), |machine| {
        let vcpu = machine.first();
        let mut faults = 0;
        for reply in [Reply::value(1), Reply::FAULT, Reply::value(2)] {
            vcpu.guest.load(&[Read(SPARE)]);
            let Some(Outcome::Handler(asked)) = vcpu.step() else {
                panic!("an access for the handler");
            };
            vcpu.guest.finish(&mut vcpu.msrs, asked, reply).unwrap();
            while vcpu.step().is_some() {}
            faults += usize::from(vcpu.saw(0, Read(SPARE)) == Saw::Fault);
        }
        assert_eq!(faults, 1);
        let told = told(&machine.gate);
        assert_eq!(told, [(SPARE, Disposition::Denied)]);
        assert_eq!(
            counted(&machine.gate),
            [(Disposition::Denied, 1), (Disposition::Handled, 2)]
        );
    });
}

/// If the handler never replies to an access, the access is logged as a refusal at the next exit: the guest
/// has got #GP.
#[test]
fn unanswered_handler_request_is_logged_at_next_exit() {
    let program = policy(
        "default = 'deny'",
        "0x10000 = { read = { handler = 'mine' }, write = 'deny' }",
    );
    let Some(mut machine) = Machine::new(program, 1) else {
        return;
    };
    let vcpu = machine.first();
    TestGuest::load(&mut vcpu.guest, &[Read(SPARE), Read(SPARE)]);
    // An exit that is answered twice counts as one access.
    assert!(matches!(vcpu.step(), Some(Outcome::Handler(_))));
    let again = TestGuest::answer(&mut vcpu.guest, &mut vcpu.msrs);
    assert!(matches!(again, Ok(Outcome::Handler(_))));
    assert_eq!(told(&machine.gate), []);
    let vcpu = machine.first();
    let Some(Outcome::Handler(asked)) = vcpu.step() else {
        panic!("the second access");
    };
    TestGuest::finish(&mut vcpu.guest, &mut vcpu.msrs, asked, Reply::value(7)).unwrap();
    assert!(vcpu.step().is_none());
    assert_eq!(vcpu.saw(0, Read(SPARE)), Saw::Fault);
    assert_eq!(vcpu.saw(1, Read(SPARE)), Saw::Value(7));
    assert_eq!(told(&machine.gate), [(SPARE, Disposition::Denied)]);
    assert_eq!(
        counted(&machine.gate),
        [(Disposition::Denied, 1), (Disposition::Handled, 1)]
    );
}

/// If no other exit comes after an access to which the handler has not replied, the access is logged at a
/// reset, or when the `VcpuGate` is dropped.
#[test]
fn unanswered_handler_request_is_logged_at_reset_and_drop() {
    let program = policy(
        "default = 'deny'",
        "0x10000 = { read = { handler = 'mine' }, write = 'deny' }",
    );
    on_each(&program, 1, &GateOptions::new(), |machine| {
        let vcpu = machine.first();
        vcpu.guest.load(&[Read(SPARE)]);
        assert!(matches!(vcpu.step(), Some(Outcome::Handler(_))));
        vcpu.guest.reset(&mut vcpu.msrs).unwrap();
        assert_eq!(told(&machine.gate), [(SPARE, Disposition::Denied)]);
        let vcpu = machine.first();
        vcpu.guest.load(&[Read(SPARE)]);
        assert!(matches!(vcpu.step(), Some(Outcome::Handler(_))));
        machine.vcpus.clear();
        assert_eq!(told(&machine.gate), [(SPARE, Disposition::Denied)]);
        assert_eq!(counted(&machine.gate), [(Disposition::Denied, 2)]);
    });
}

/// An access for which one program asked a handler is logged under that program. The access does not change
/// a register that the next program has at the same MSR.
#[test]
fn unanswered_handler_request_does_not_change_register_of_next_program() {
    let old = policy(
        "default = 'deny'",
        "0x10000 = { read = 'deny', write = { handler = 'mine' } }",
    );
    let Some(mut machine) = Machine::new(old, 1) else {
        return;
    };
    let write = Write(SPARE, 0x42);
    let vcpu = machine.first();
    TestGuest::load(&mut vcpu.guest, &[write]);
    assert!(matches!(vcpu.step(), Some(Outcome::Handler(_))));
    assert!(vcpu.step().is_none());
    assert_eq!(vcpu.saw(0, write), Saw::Fault);
    let entries = "0x10000 = { register = { reset = 7, mask = '0xff' } }";
    machine
        .gate
        .replace(policy("default = 'deny'", entries))
        .unwrap();
    let vcpu = machine.first();
    TestGuest::msr_set_by_host(&mut vcpu.guest, &mut vcpu.msrs, LSTAR).unwrap();
    assert_eq!(vcpu.run(&[Read(SPARE)]), [Saw::Value(7)]);
    assert_eq!(told(&machine.gate), [(SPARE, Disposition::Denied)]);
}

/// Returns the events that came since the last call of this function.
fn told(gate: &Gate) -> Vec<(MsrIndex, Disposition)> {
    let mut told = Vec::new();
    let mut reader = gate.events().unwrap();
    reader.drain(|event| told.push((event.index, event.disposition)));
    told
}

/// Returns the number of accesses with each disposition.
fn counted(gate: &Gate) -> Vec<(Disposition, u64)> {
    let counted = gate.counted();
    let mut by_deed = BTreeMap::new();
    for count in counted.counts {
        *by_deed.entry(count.disposition).or_insert(0) += count.count;
    }
    by_deed.into_iter().collect()
}
