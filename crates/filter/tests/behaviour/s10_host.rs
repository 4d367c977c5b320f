//! S10: the host's `ignore_msrs`, INIT and reset.

use msrgate_filter::{
    ExitReason, Gprs, Instruction, RegisterFault, Reply, Revision, RunExit, UnknownMsrs,
};

use crate::machine::{INITIAL, MISSING, PICKY, PLAIN, denying, guarded, read, reason, write};

#[test]
fn s10_1_ignored_unknown_msr_never_exits() {
    for revision in Revision::ALL {
        let (vm, mut vcpu) = guarded(revision, &[PLAIN]);
        vm.set_unknown_msrs(UnknownMsrs::Ignore);
        assert_eq!(read(&mut vcpu, MISSING), RunExit::Retired);
        assert_eq!(vcpu.gprs().value(), 0);
        assert_eq!(write(&mut vcpu, MISSING, 5), RunExit::Retired);
        assert_eq!(vcpu.host_read(MISSING), Ok(0));
        assert_eq!(vcpu.host_write(MISSING, 5), Ok(()));

        // `ignore_msrs` does not hide the fault of a register that KVM knows.
        assert_eq!(
            reason(write(&mut vcpu, PICKY, 1 << 40)),
            Some(ExitReason::Invalid)
        );
        vcpu.run_immediate_exit();
        vm.set_unknown_msrs(UnknownMsrs::Fail);
        assert_eq!(vcpu.host_read(MISSING), Err(RegisterFault::Unknown));
    }
}

#[test]
fn s10_1_filter_is_asked_before_ignore_msrs() {
    for revision in Revision::ALL {
        let (vm, mut vcpu) = guarded(revision, &[MISSING]);
        vm.set_unknown_msrs(UnknownMsrs::Ignore);
        assert_eq!(reason(read(&mut vcpu, MISSING)), Some(ExitReason::Filter));
        vcpu.run_immediate_exit();
        vm.set_filter(&denying(revision, msrgate_filter::Accesses::Both, &[PLAIN]))
            .unwrap();
        assert_eq!(read(&mut vcpu, MISSING), RunExit::Retired);
    }
}

#[test]
fn s10_4_vcpu_reset_keeps_filter_and_reason_mask() {
    for revision in Revision::ALL {
        let (_vm, mut vcpu) = guarded(revision, &[PLAIN]);
        read(&mut vcpu, PLAIN);
        vcpu.reply(Reply::FAULT);
        vcpu.run_immediate_exit();
        vcpu.reset();
        assert_eq!(vcpu.gprs(), Gprs::RESET);
        let outcome = vcpu.run(Instruction::Rdmsr);
        assert!(
            reason(outcome).is_some(),
            "not the fault of before: {outcome:?}"
        );
        vcpu.run_immediate_exit();
        assert_eq!(reason(read(&mut vcpu, PLAIN)), Some(ExitReason::Filter));
        assert_eq!(vcpu.host_read(PLAIN), Ok(INITIAL));
    }
}
