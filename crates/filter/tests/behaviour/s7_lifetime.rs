//! S7: what outlives what.

use msrgate_filter::{Access, ExitReason, RegisterMap, Revision, Verdict};

use crate::machine::{MISSING, PICKY, PLAIN, guarded, read, reason};

/// In v6's teardown the bitmaps go before the vCPUs do. Here nothing can: each vCPU owns a share of
/// what it looks at.
#[test]
fn s7_the_filter_outlives_every_vcpu() {
    for revision in Revision::ALL {
        let (vm, mut first) = guarded(revision, &[PLAIN]);
        let second = vm.create_vcpu(RegisterMap::default());
        drop(vm);
        drop(second);
        assert_eq!(reason(read(&mut first, PLAIN)), Some(ExitReason::Filter));
        assert_eq!(first.decide(PICKY, Access::Read).verdict, Verdict::Allow);
    }
}

#[test]
fn vcpus_are_numbered_in_the_order_of_their_creation() {
    let (vm, first) = guarded(Revision::Mainline, &[MISSING]);
    drop(first);
    let numbers = [(); 40].map(|()| vm.create_vcpu(RegisterMap::default()).number().get());
    assert!(numbers.into_iter().eq(1..41));
}

/// More vCPUs than there are stripes of counters: all see the filter.
#[test]
fn every_vcpu_sees_the_filter() {
    let (vm, _first) = guarded(Revision::Mainline, &[PLAIN]);
    for _ in 0..40 {
        let vcpu = vm.create_vcpu(RegisterMap::default());
        assert_eq!(vcpu.decide(PLAIN, Access::Write).verdict, Verdict::Deny);
    }
}
