//! S6.3, S6.4, S7: the hardware bitmaps, and the request to recompute them after a new filter.

use msrgate_filter::intercept::PassThrough;
use msrgate_filter::{
    Access, Accesses, Entry, ExitReason, GuestMode, Hardware, Instruction, MsrIndex, ReasonMask,
    RegisterMap, Revision, RunExit, SingleStep, UnknownMsrs, Vcpu,
};

use crate::machine::{
    FAULT, INITIAL, MISSING, PICKY, PLAIN, X2APIC_TPR, about_to_read, denying, guarded, read,
    reason, write,
};

const BOTH: [Hardware; 2] = [Hardware::Vmx, Hardware::Svm];

fn everything(_: MsrIndex, _: Access) -> PassThrough {
    PassThrough::Wanted
}

fn only_plain(index: MsrIndex, _: Access) -> PassThrough {
    if index == PLAIN {
        PassThrough::Wanted
    } else {
        PassThrough::Unwanted
    }
}

fn enter(vcpu: &mut Vcpu<RegisterMap>, index: MsrIndex) -> GuestMode<'_, RegisterMap> {
    vcpu.set_gprs(about_to_read(index));
    match vcpu.enter() {
        Entry::Guest(guest) => guest,
        Entry::Finished(outcome) => unreachable!("nothing was pending: {outcome:?}"),
    }
}

/// An access that passes through does not leave guest mode, and its faults are the processor's own:
/// no mask makes them exits, and `ignore_msrs` does not hide them.
#[test]
fn s6_3_access_that_hypervisor_passes_through_and_filter_allows_does_not_exit() {
    for hardware in BOTH {
        let (vm, mut vcpu) = guarded(Revision::Mainline, &[PLAIN]);
        vm.set_unknown_msrs(UnknownMsrs::Ignore);
        vcpu.pass_through(hardware, everything);
        assert_eq!(reason(read(&mut vcpu, PLAIN)), Some(ExitReason::Filter));
        vcpu.run_immediate_exit();
        for (index, outcome) in [(PICKY, RunExit::Retired), (MsrIndex::new(0x1fff), FAULT)] {
            let executed = enter(&mut vcpu, index).execute(Instruction::Rdmsr);
            assert_eq!(executed.outcome, outcome);
            assert!(executed.still_in_guest.is_some());
        }
        // The bitmaps do not cover this MSR, so KVM handles the access.
        let executed = enter(&mut vcpu, MISSING).execute(Instruction::Rdmsr);
        assert_eq!(executed.outcome, RunExit::Retired);
        assert!(executed.still_in_guest.is_none());
    }
}

#[test]
fn s6_3_access_that_hypervisor_does_not_pass_through_exits_under_any_filter() {
    for hardware in BOTH {
        let (_vm, mut vcpu) = guarded(Revision::Mainline, &[]);
        vcpu.pass_through(hardware, only_plain);
        let executed = enter(&mut vcpu, PICKY).execute(Instruction::Rdmsr);
        assert_eq!(executed.outcome, RunExit::Retired);
        assert!(executed.still_in_guest.is_none());
    }
}

/// Under single-step the vCPU leaves guest mode by a debug exit after the instruction, although the
/// access itself passed through.
#[test]
fn s5_4_single_step_stops_after_passed_through_access() {
    for hardware in BOTH {
        let (_vm, mut vcpu) = guarded(Revision::Mainline, &[]);
        vcpu.pass_through(hardware, everything);
        vcpu.set_single_step(SingleStep::On);
        let executed = enter(&mut vcpu, PLAIN).execute(Instruction::Rdmsr);
        assert_eq!(executed.outcome, RunExit::Debug);
        assert!(executed.still_in_guest.is_none());
    }
}

/// While a vCPU stays in guest mode, its old hardware bits hold even after the set call has returned:
/// an access that the new filter denies still passes through. The next VM entry recomputes the bits.
#[test]
fn s7_old_hardware_bitmap_holds_until_the_next_vm_entry_after_a_set() {
    for hardware in BOTH {
        let (vm, mut vcpu) = guarded(Revision::Mainline, &[]);
        vcpu.pass_through(hardware, only_plain);
        let guest = enter(&mut vcpu, PLAIN);
        let deny = denying(Revision::Mainline, Accesses::Both, &[PLAIN]);
        vm.set_filter(&deny).unwrap();

        let executed = guest.execute(Instruction::Rdmsr);
        assert_eq!(executed.outcome, RunExit::Retired);
        let guest = executed.still_in_guest.unwrap();
        let executed = guest.execute(Instruction::Wrmsr);
        assert_eq!(executed.outcome, RunExit::Retired, "as often as it likes");

        assert!(vcpu.is_recompute_pending());
        assert_eq!(reason(read(&mut vcpu, PLAIN)), Some(ExitReason::Filter));
        assert!(!vcpu.is_recompute_pending());
    }
}

/// If the new filter allows an access that the old hardware bits intercept, the access exits to KVM,
/// whose check uses the new filter at once and allows it.
#[test]
fn s7_access_that_exits_to_kvm_is_checked_by_new_filter_at_once() {
    for hardware in BOTH {
        let (vm, mut vcpu) = guarded(Revision::Mainline, &[PLAIN]);
        vcpu.pass_through(hardware, only_plain);
        let guest = enter(&mut vcpu, PLAIN);
        let allow = denying(Revision::Mainline, Accesses::Both, &[]);
        vm.set_filter(&allow).unwrap();
        let executed = guest.execute(Instruction::Rdmsr);
        assert_eq!(executed.outcome, RunExit::Retired);
        assert!(executed.still_in_guest.is_none(), "it did exit to KVM");

        let executed = enter(&mut vcpu, PLAIN).execute(Instruction::Rdmsr);
        assert!(executed.still_in_guest.is_some(), "and now does not");
    }
}

#[test]
fn s6_4_each_vcpu_handles_its_own_recompute_request() {
    let (vm, mut first) = guarded(Revision::Mainline, &[]);
    let second = vm.create_vcpu(RegisterMap::default());
    vm.set_filter(&denying(Revision::Mainline, Accesses::Both, &[PLAIN]))
        .unwrap();
    let third = vm.create_vcpu(RegisterMap::default());
    assert!(first.is_recompute_pending() && second.is_recompute_pending());
    assert!(!third.is_recompute_pending(), "made after the fact");
    read(&mut first, PICKY);
    assert!(!first.is_recompute_pending() && second.is_recompute_pending());
}

/// `KVM_RUN` under `immediate_exit` only completes the exit and does not enter the guest, so the
/// request to recompute the hardware bitmaps stays pending.
#[test]
fn s6_4_immediate_exit_keeps_recompute_request_pending() {
    let (vm, mut vcpu) = guarded(Revision::Mainline, &[PLAIN]);
    read(&mut vcpu, PLAIN);
    vm.set_filter(&denying(Revision::Mainline, Accesses::Both, &[]))
        .unwrap();
    vcpu.run_immediate_exit();
    assert!(vcpu.is_recompute_pending());
}

#[test]
fn s6_4_filter_does_not_change_intercept_bits_of_x2apic_registers() {
    for (revision, hardware) in Revision::ALL.into_iter().zip(BOTH) {
        let (vm, mut vcpu) = guarded(revision, &[X2APIC_TPR]);
        vm.set_reasons(ReasonMask::NONE);
        vcpu.pass_through(hardware, everything);
        assert_eq!(write(&mut vcpu, X2APIC_TPR, 1), RunExit::Retired);
        vcpu.pass_through(hardware, |_, _| PassThrough::Unwanted);
        let expected = match revision {
            Revision::Mainline => RunExit::Retired,
            Revision::V6 => FAULT,
        };
        assert_eq!(write(&mut vcpu, X2APIC_TPR, 2), expected);
        assert_ne!(vcpu.host_read(X2APIC_TPR), Ok(INITIAL));
    }
}
