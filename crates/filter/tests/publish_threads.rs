//! S7 on real threads: vCPUs decide while a setter replaces the filter. `publish/model.rs` has loom
//! prove this for a few words; here the content is a whole filter.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use msrgate_filter::intercept::PassThrough;
use msrgate_filter::{
    Access, Accesses, Because, Bitmap, DefaultAction, Entry, Filter, Gprs, Hardware, Instruction,
    MAX_RANGES, MsrIndex, Range, Register, RegisterMap, Revision, RunExit, Vcpu, Verdict, Vm,
};

const PUBLICATIONS: usize = 400;

/// Creates a range of the largest possible size from `base` on, with the same verdict for all its
/// MSRs.
fn full(base: u32, verdict: Verdict) -> Range {
    let allows = |_| verdict == Verdict::Allow;
    let bitmap = Bitmap::from_fn(Bitmap::MAX_COUNT, allows).expect("the largest there is");
    Range::new(Accesses::Both, MsrIndex::new(base), bitmap)
}

/// Creates a filter in which range number `place` decides a window of MSRs, with `verdict`. The
/// ranges with lower numbers cover other MSRs. Those ranges only move the pages of the window's
/// MSRs to another position in the lookup table.
fn window(base: u32, verdict: Verdict, place: usize) -> Filter {
    let bases = (1..).map(|number| base ^ number << 24);
    let mut ranges: Vec<_> = bases.take(place).map(|base| full(base, verdict)).collect();
    ranges.push(full(base, verdict));
    Filter::new(Revision::Mainline, DefaultAction::Allow, ranges).expect("at most sixteen")
}

const BASE: u32 = 0x1234_5678;

/// One filter allows a window of MSRs by its range 15, the other filter denies the window by its range
/// 3. A decision made from parts of both filters would have the verdict of one filter and the range
/// number of the other filter, or no range.
#[test]
fn s7_decision_during_replacement_of_filters_uses_only_one_of_them() {
    let [allowing, denying] = [
        window(BASE, Verdict::Allow, 15),
        window(BASE, Verdict::Deny, 3),
    ];
    let vm = Vm::new(Revision::Mainline);
    vm.set_filter(&allowing).unwrap();
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        for start in [0, 7, 100] {
            let vcpu = vm.create_vcpu(RegisterMap::default());
            let is_over = &is_over;
            scope.spawn(move || {
                let mut offset = start;
                while !is_over.load(Ordering::Relaxed) {
                    offset = (offset + 0x1ab) % Bitmap::MAX_COUNT;
                    let decision = vcpu.decide(MsrIndex::new(BASE + offset), Access::Write);
                    let place = match decision.because {
                        Because::Range(number) => number.get(),
                        because => panic!("{because:?} at {offset:#x}"),
                    };
                    let seen = (decision.verdict, place);
                    let whole = [(Verdict::Allow, 15), (Verdict::Deny, 3)];
                    assert!(whole.contains(&seen), "{seen:?} at {offset:#x}");
                }
            });
        }
        for _ in 0..PUBLICATIONS / 2 {
            vm.set_filter(&denying).unwrap();
            vm.set_filter(&allowing).unwrap();
        }
        is_over.store(true, Ordering::Relaxed);
    });
}

/// A check that begins after a set call has returned uses the filter of that call or of a later call.
/// The number of the range that decides shows which filter a vCPU used.
#[test]
fn s7_check_that_begins_after_set_uses_new_filter() {
    let filters: Vec<_> = (0..MAX_RANGES)
        .map(|place| window(BASE, Verdict::Deny, place))
        .collect();
    for _ in 0..PUBLICATIONS / MAX_RANGES {
        let vm = Vm::new(Revision::Mainline);
        vm.set_filter(&filters[0]).unwrap();
        let returned = AtomicUsize::new(0);
        thread::scope(|scope| {
            for _ in 0..3 {
                let vcpu = vm.create_vcpu(RegisterMap::default());
                let returned = &returned;
                scope.spawn(move || {
                    let mut seen = 0;
                    while seen + 1 < MAX_RANGES {
                        let at_least = returned.load(Ordering::Acquire).max(seen);
                        let decision = vcpu.decide(MsrIndex::new(BASE), Access::Read);
                        let Because::Range(number) = decision.because else {
                            panic!("{decision:?}");
                        };
                        seen = number.get();
                        assert!(seen >= at_least, "{seen} after {at_least} was set");
                    }
                });
            }
            for (place, filter) in filters.iter().enumerate() {
                vm.set_filter(filter).unwrap();
                returned.store(place, Ordering::Release);
            }
        });
    }
}

/// A low and a high MSR of each of the two regions that the processor's MSR bitmaps cover.
const EDGES: [u32; 4] = [0x10, 0x1fff, 0xc000_0080, 0xc000_1fff];

fn at(index: u32) -> Gprs {
    Gprs {
        rcx: index.into(),
        ..Gprs::RESET
    }
}

/// Reads the MSRs without leaving guest mode, and returns the number of reads before the first
/// exit.
fn passing(vcpu: &mut Vcpu<RegisterMap>, indices: impl Iterator<Item = u32>) -> usize {
    let Entry::Guest(mut guest) = vcpu.enter() else {
        unreachable!("nothing is ever pending");
    };
    let mut passed = 0;
    for index in indices {
        guest.set_gprs(at(index));
        let executed = guest.execute(Instruction::Rdmsr);
        let Some(next) = executed.still_in_guest else {
            break;
        };
        assert_eq!(executed.outcome, RunExit::Retired);
        guest = next;
        passed += 1;
    }
    passed
}

/// The hardware bitmaps of one filter pass all the MSRs, those of the other filter pass none. If a vCPU
/// enters the guest once, and there some reads pass and some exit, its bitmaps were computed from both
/// filters.
#[test]
fn s6_4_recomputed_bitmaps_come_from_one_filter() {
    let all = |default_action| {
        let range = full(0x4000_0000, Verdict::Deny);
        Filter::new(Revision::Mainline, default_action, vec![range]).unwrap()
    };
    let filters = [all(DefaultAction::Allow), all(DefaultAction::Deny)];
    let vm = Vm::new(Revision::Mainline);
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        for hardware in [Hardware::Vmx, Hardware::Svm] {
            let registers = EDGES.map(|index| (MsrIndex::new(index), Register::new(0)));
            let mut vcpu = vm.create_vcpu(RegisterMap::from_iter(registers));
            vcpu.pass_through(hardware, |_, _| PassThrough::Wanted);
            let is_over = &is_over;
            scope.spawn(move || {
                let mut first = 0;
                while !is_over.load(Ordering::Relaxed) {
                    first = (first + 1) % EDGES.len();
                    let indices = EDGES.into_iter().cycle().skip(first).take(EDGES.len());
                    let passed = passing(&mut vcpu, indices);
                    assert!([0, EDGES.len()].contains(&passed), "{passed} passed");
                }
            });
        }
        for filter in filters.iter().cycle().take(PUBLICATIONS / 4) {
            vm.set_filter(filter).unwrap();
        }
        is_over.store(true, Ordering::Relaxed);
    });
}
