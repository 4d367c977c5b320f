//! S5.1 to S5.3, S5.7: the outcome of a refused access.

use msrgate_filter::{
    Access, Accesses, Exit, ExitReason, MsrIndex, RegisterMap, Revision, RunExit, Vcpu,
};

use crate::machine::{
    FAULT, INITIAL, MISSING, PAST, PICKY, PLAIN, about_to_access, about_to_read, denying, guarded,
    read, reason, registers, vm, write,
};

const ILLEGAL: u64 = 1 << 40;

/// Returns the exit reasons of an unknown register, an illegal value and a denied read.
fn failures(vcpu: &mut Vcpu<RegisterMap>) -> [Option<ExitReason>; 3] {
    let unknown = reason(read(vcpu, MISSING));
    vcpu.run_immediate_exit();
    let invalid = reason(write(vcpu, PICKY, ILLEGAL));
    vcpu.run_immediate_exit();
    let filtered = reason(read(vcpu, PLAIN));
    vcpu.run_immediate_exit();
    [unknown, invalid, filtered]
}

#[test]
fn s5_1_filter_is_asked_before_the_register() {
    for revision in Revision::ALL {
        let (vm, mut vcpu) = guarded(revision, &[MISSING, PICKY, PLAIN]);
        assert_eq!(failures(&mut vcpu), [Some(ExitReason::Filter); 3]);
        vm.set_filter(&denying(revision, Accesses::Both, &[PLAIN]))
            .unwrap();
        let unknown = match revision {
            Revision::Mainline => ExitReason::Unknown,
            Revision::V6 => ExitReason::Invalid,
        };
        let expected = [unknown, ExitReason::Invalid, ExitReason::Filter];
        assert_eq!(failures(&mut vcpu), expected.map(Some));
    }
}

/// Under every reason mask, an access that fails exits with the reason for which it failed, or does not
/// exit.
#[test]
fn s5_2_failed_access_exits_only_for_its_own_reason() {
    for mask in 0..8_u64 {
        let revision = Revision::Mainline;
        let vm = vm(revision, &[]);
        let capability = msrgate_filter::Capability::user_space_msr(revision);
        vm.enable_cap(capability, mask).unwrap();
        vm.set_filter(&denying(revision, Accesses::Both, &[PLAIN]))
            .unwrap();
        let mut vcpu = vm.create_vcpu(registers());
        let expected = [
            (mask & 2 != 0).then_some(ExitReason::Unknown),
            (mask & 1 != 0).then_some(ExitReason::Invalid),
            (mask & 4 != 0).then_some(ExitReason::Filter),
        ];
        assert_eq!(failures(&mut vcpu), expected, "mask {mask}");
    }
}

#[test]
fn s5_2_failed_access_gives_guest_a_fault_if_reason_mask_lacks_its_reason() {
    for revision in Revision::ALL {
        let (vm, mut vcpu) = guarded(revision, &[PLAIN]);
        vm.set_reasons(msrgate_filter::ReasonMask::NONE);
        assert_eq!(read(&mut vcpu, PLAIN), FAULT);
        assert_eq!(vcpu.gprs(), about_to_read(PLAIN));
        assert_eq!(write(&mut vcpu, PLAIN, 5), FAULT);
        assert_eq!(vcpu.gprs(), about_to_access(PLAIN, 5));
        assert_eq!(vcpu.host_read(PLAIN), Ok(INITIAL));
        assert_eq!(vcpu.pending_exit(), None);
    }
}

#[test]
fn s5_3_exit_shows_access_and_keeps_guest_state() {
    let value = 0xfeed_beef_dead_cafe;
    for revision in Revision::ALL {
        for index in [PLAIN, MsrIndex::MIN, MsrIndex::new(0xc000_0080)] {
            let (_vm, mut vcpu) = guarded(revision, &[index]);
            let exit = |access, data| Exit {
                index,
                access,
                data,
                reason: ExitReason::Filter,
            };
            assert_eq!(read(&mut vcpu, index), RunExit::Msr(exit(Access::Read, 0)));
            assert_eq!(vcpu.gprs(), about_to_read(index));
            vcpu.run_immediate_exit();
            let exit = exit(Access::Write, value);
            assert_eq!(write(&mut vcpu, index, value), RunExit::Msr(exit));
            assert_eq!(vcpu.gprs(), about_to_access(index, value));
            assert_eq!(vcpu.pending_exit(), Some(exit));
        }
    }
}

/// If the filter denies one direction, an access in the other direction still reaches the register.
#[test]
fn s3_3_access_in_the_direction_that_the_filter_allows_reaches_the_register() {
    for revision in Revision::ALL {
        let (vm, mut vcpu) = guarded(revision, &[]);
        vm.set_filter(&denying(revision, Accesses::Write, &[PLAIN]))
            .unwrap();
        assert_eq!(read(&mut vcpu, PLAIN), RunExit::Retired);
        assert_eq!(vcpu.gprs().value(), INITIAL);
        assert_eq!(vcpu.gprs().rax, INITIAL & 0xffff_ffff, "upper half cleared");
        assert_eq!(vcpu.gprs().rip, PAST);
        assert_eq!(reason(write(&mut vcpu, PLAIN, 1)), Some(ExitReason::Filter));
        vcpu.run_immediate_exit();
        vm.set_filter(&denying(revision, Accesses::Read, &[PLAIN]))
            .unwrap();
        assert_eq!(write(&mut vcpu, PLAIN, 7), RunExit::Retired);
        assert_eq!(vcpu.host_read(PLAIN), Ok(7));
    }
}
