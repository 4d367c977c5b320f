//! S7: the lifetimes of VM, vCPU and filter.

use msrgate_filter::{Access, ExitReason, RegisterMap, Revision, Verdict};

use crate::machine::{MISSING, PICKY, PLAIN, guarded, read, reason};

/// After a VM is dropped, its filter still holds for its vCPUs, because each vCPU owns a share of
/// the filter. v6's teardown frees the bitmaps before the vCPUs.
#[test]
fn s7_filter_outlives_vm_while_a_vcpu_lives() {
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
fn vcpus_are_numbered_in_creation_order() {
    let (vm, first) = guarded(Revision::Mainline, &[MISSING]);
    drop(first);
    let numbers = [(); 40].map(|()| vm.create_vcpu(RegisterMap::default()).number().get());
    assert!(numbers.into_iter().eq(1..41));
}

/// In a VM with more vCPUs than there are stripes of reader counters, the filter holds for each vCPU.
#[test]
fn filter_holds_for_each_vcpu_of_a_vm_with_more_vcpus_than_reader_stripes() {
    let (vm, _first) = guarded(Revision::Mainline, &[PLAIN]);
    for _ in 0..40 {
        let vcpu = vm.create_vcpu(RegisterMap::default());
        assert_eq!(vcpu.decide(PLAIN, Access::Write).verdict, Verdict::Deny);
    }
}
