//! S2, for the VM: the effects of a set call. The tests of `SetCall` cover the checks of the call.

use msrgate_filter::abi::CallerWidth;
use msrgate_filter::{
    Access, Accesses, Because, DefaultAction, Errno, Filter, ForeignFilter, MsrIndex, Revision,
    Verdict, Vm,
};

use crate::caller;
use crate::machine::{MISSING, PICKY, PLAIN, denying, registers};

use Verdict::{Allow, Deny};

fn verdicts<const N: usize>(vm: &Vm, indices: [MsrIndex; N]) -> [Verdict; N] {
    let vcpu = vm.create_vcpu(registers());
    indices.map(|index| vcpu.decide(index, Access::Read).verdict)
}

#[test]
fn s2_5_set_msr_filter_takes_effect_and_requests_recompute() {
    for (revision, width) in [
        (Revision::Mainline, CallerWidth::Bits64),
        (Revision::Mainline, CallerWidth::Bits32),
        (Revision::V6, CallerWidth::Bits64),
    ] {
        let vm = Vm::new(revision);
        let vcpu = vm.create_vcpu(registers());
        assert!(!vcpu.is_recompute_pending());
        let filter = denying(revision, Accesses::Both, &[PLAIN, PICKY]);
        assert_eq!(caller::set(&vm, width, &filter), Ok(()));
        assert_eq!(verdicts(&vm, [PLAIN, PICKY, MISSING]), [Deny, Deny, Allow]);
        assert!(vcpu.is_recompute_pending());
        let filter = denying(revision, Accesses::Both, &[MISSING]);
        assert_eq!(caller::set(&vm, width, &filter), Ok(()));
        assert_eq!(verdicts(&vm, [PLAIN, PICKY, MISSING]), [Allow, Allow, Deny]);
    }
}

/// A set call fails because its second range is invalid. Mainline keeps the old filter and requests
/// nothing from the vCPUs. v6 leaves a filter of the first range under the new default action, and
/// requests all vCPUs to recompute their hardware bitmaps.
#[test]
fn s2_7_failed_set_keeps_old_filter_on_mainline_but_not_on_v6() {
    for (revision, expected) in [
        (Revision::Mainline, [Deny, Allow, Allow]),
        (Revision::V6, [Allow, Deny, Allow]),
    ] {
        let vm = Vm::new(revision);
        vm.set_filter(&denying(revision, Accesses::Both, &[PLAIN]))
            .unwrap();
        let vcpu = vm.create_vcpu(registers());
        let next = denying(revision, Accesses::Both, &[PICKY, MISSING]);
        let error = caller::edited(&vm, CallerWidth::Bits64, &next, |request| {
            request.ranges[1].flags = 4;
        })
        .unwrap_err();
        assert_eq!(error.errno(), Errno::Einval);
        assert_eq!(verdicts(&vm, [PLAIN, PICKY, MISSING]), expected);
        assert_eq!(vcpu.is_recompute_pending(), revision == Revision::V6);
    }
}

#[test]
fn s2_7_failed_set_with_invalid_first_range_leaves_every_access_allowed_on_v6() {
    for (revision, expected) in [(Revision::Mainline, Deny), (Revision::V6, Allow)] {
        let vm = Vm::new(revision);
        let filter = denying(revision, Accesses::Both, &[PLAIN]);
        vm.set_filter(&filter).unwrap();
        caller::edited(&vm, CallerWidth::Bits64, &filter, |request| {
            request.flags = 1;
            request.ranges[0].flags = 0;
        })
        .unwrap_err();
        assert_eq!(verdicts(&vm, [PLAIN]), [expected]);
    }
}

/// If the struct cannot be read, both revisions keep the filter: v6 tears it down only after it has
/// read the struct.
#[test]
fn s2_1_set_with_unreadable_struct_keeps_old_filter() {
    for revision in Revision::ALL {
        let vm = Vm::new(revision);
        vm.set_filter(&denying(revision, Accesses::Both, &[PLAIN]))
            .unwrap();
        let vcpu = vm.create_vcpu(registers());
        let error = caller::unreadable(&vm).unwrap_err();
        assert_eq!(error.errno(), Errno::Efault);
        assert_eq!(verdicts(&vm, [PLAIN]), [Deny]);
        assert!(!vcpu.is_recompute_pending());
    }
}

#[test]
fn s2_3_set_of_deny_without_ranges_depends_on_revision() {
    for revision in Revision::ALL {
        let vm = Vm::new(revision);
        let empty = Filter::new(revision, DefaultAction::Allow, Vec::new()).unwrap();
        let denies = |request: &mut msrgate_filter::abi::Request| request.flags = 1;
        let result = caller::edited(&vm, CallerWidth::Bits64, &empty, denies);
        match revision {
            Revision::Mainline => assert_eq!(result.unwrap_err().errno(), Errno::Einval),
            Revision::V6 => assert_eq!(result, Ok(())),
        }
        assert_eq!(verdicts(&vm, [PLAIN]), [Allow]);
    }
}

#[test]
fn s1_6_v6_has_no_call_for_32_bit_callers() {
    let vm = Vm::new(Revision::V6);
    let filter = denying(Revision::V6, Accesses::Both, &[PLAIN]);
    let error = caller::set(&vm, CallerWidth::Bits32, &filter).unwrap_err();
    assert_eq!(error.errno(), Errno::Enotty);
    assert_eq!(verdicts(&vm, [PLAIN]), [Allow]);
}

#[test]
fn set_filter_refuses_filter_of_other_revision() {
    let vm = Vm::new(Revision::Mainline);
    let filter = denying(Revision::V6, Accesses::Both, &[PLAIN]);
    let foreign = ForeignFilter {
        vm: Revision::Mainline,
        filter: Revision::V6,
    };
    assert_eq!(vm.set_filter(&filter), Err(foreign));
    let vcpu = vm.create_vcpu(registers());
    assert_eq!(vcpu.decide(PLAIN, Access::Read).because, Because::NoFilter);
}
