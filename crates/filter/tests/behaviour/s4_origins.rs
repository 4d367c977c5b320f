//! S4: the accesses for which the filter is asked.

use msrgate_filter::{
    ExitReason, ListAccess, ListFailure, ListOutcome, Privilege, RegisterFault, Revision, RunExit,
};

use crate::machine::{
    FAULT, INITIAL, MISSING, PICKY, PLAIN, X2APIC_TPR, guarded, read, reason, write,
};

#[test]
fn s4_get_msrs_and_set_msrs_of_the_host_are_not_filtered() {
    for revision in Revision::ALL {
        let (_vm, mut vcpu) = guarded(revision, &[PLAIN, PICKY]);
        assert_eq!(vcpu.host_read(PLAIN), Ok(INITIAL));
        assert_eq!(vcpu.host_write(PLAIN, 1), Ok(()));
        assert_eq!(vcpu.host_read(PLAIN), Ok(1));
        assert_eq!(vcpu.host_write(PICKY, u64::MAX), Ok(()));
        assert_eq!(vcpu.host_read(MISSING), Err(RegisterFault::Unknown));
        assert_eq!(vcpu.pending_exit(), None);
    }
}

/// If the guest's code runs above CPL 0, an RDMSR or WRMSR gets #GP, even if the filter allows the
/// register, and even if the reason mask makes every failed access exit.
#[test]
fn s4_access_above_cpl_0_faults_before_the_filter_is_asked() {
    for revision in Revision::ALL {
        let (_vm, mut vcpu) = guarded(revision, &[PLAIN]);
        vcpu.set_privilege(Privilege::User);
        for index in [PLAIN, PICKY, MISSING] {
            assert_eq!(read(&mut vcpu, index), FAULT);
            assert_eq!(write(&mut vcpu, index, 1), FAULT);
        }
        vcpu.set_privilege(Privilege::Kernel);
        assert_eq!(reason(read(&mut vcpu, PLAIN)), Some(ExitReason::Filter));
    }
}

#[test]
fn s4_nested_msr_lists_are_filtered_and_never_exit() {
    for revision in Revision::ALL {
        let (_vm, mut vcpu) = guarded(revision, &[PLAIN]);
        let fails = |index, reason| ListOutcome::Fails(ListFailure { index, reason });
        let unknown = match revision {
            Revision::Mainline => ExitReason::Unknown,
            Revision::V6 => ExitReason::Invalid,
        };
        let rows = [
            (PLAIN, ListAccess::Store, fails(PLAIN, ExitReason::Filter)),
            (PLAIN, ListAccess::Load(1), fails(PLAIN, ExitReason::Filter)),
            (PICKY, ListAccess::Store, ListOutcome::Stored(6)),
            (PICKY, ListAccess::Load(1), ListOutcome::Loaded),
            (PICKY, ListAccess::Store, ListOutcome::Stored(1)),
            (
                PICKY,
                ListAccess::Load(1 << 40),
                fails(PICKY, ExitReason::Invalid),
            ),
            (MISSING, ListAccess::Store, fails(MISSING, unknown)),
        ];
        for (index, access, outcome) in rows {
            assert_eq!(vcpu.nested_list_access(index, access), outcome);
            assert_eq!(vcpu.pending_exit(), None);
        }
        assert_eq!(vcpu.host_read(PLAIN), Ok(INITIAL));
    }
}

/// On mainline no filter covers the x2APIC registers, neither for an instruction nor for an MSR list:
/// this exemption depends only on the MSR's index. v6 has no exemption.
#[test]
fn s3_1_no_filter_covers_x2apic_registers_on_mainline_only() {
    for (revision, expected) in [
        (Revision::Mainline, RunExit::Retired),
        (
            Revision::V6,
            RunExit::GeneralProtection {
                rip: crate::machine::AT,
            },
        ),
    ] {
        let (vm, mut vcpu) = guarded(revision, &[X2APIC_TPR]);
        vm.set_reasons(msrgate_filter::ReasonMask::NONE);
        assert_eq!(read(&mut vcpu, X2APIC_TPR), expected);
        assert_eq!(write(&mut vcpu, X2APIC_TPR, 1), expected);
        let loaded = vcpu.nested_list_access(X2APIC_TPR, ListAccess::Load(2));
        assert_eq!(
            loaded == ListOutcome::Loaded,
            revision == Revision::Mainline
        );
    }
}
