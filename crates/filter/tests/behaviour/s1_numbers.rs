//! S1: the numbers and offsets of KVM's interface, and the two capabilities.

use msrgate_filter::{
    Access, Capability, Errno, Exit, ExitReason, Extension, ReasonMask, Revision, RunLayout, Vm,
};

use crate::machine::{PLAIN, denying, read, reason, registers, write};

#[test]
fn s1_1_s1_2_check_extension_finds_capabilities_by_numbers_of_the_revision() {
    for (revision, user_space_msr, msr_filter) in
        [(Revision::Mainline, 188, 189), (Revision::V6, 184, 185)]
    {
        assert_eq!(Capability::user_space_msr(revision).get(), user_space_msr);
        assert_eq!(Capability::msr_filter(revision).get(), msr_filter);
        let vm = Vm::new(revision);
        for number in [user_space_msr, msr_filter] {
            assert_eq!(
                vm.check_extension(Capability::new(number)),
                Extension::PRESENT
            );
        }
        for number in [0, 183, 186, 187, 190, u32::MAX] {
            assert_eq!(
                vm.check_extension(Capability::new(number)),
                Extension::ABSENT
            );
        }
    }
}

#[test]
fn s1_3_exit_number_depends_on_direction() {
    for (access, number) in [(Access::Read, 29), (Access::Write, 30)] {
        let exit = Exit {
            index: PLAIN,
            access,
            data: 0,
            reason: ExitReason::Filter,
        };
        assert_eq!(exit.number().get(), number);
    }
}

#[test]
fn s1_4_exit_reason_bits_depend_on_revision() {
    let rows = [
        (Revision::Mainline, [Some(1), Some(2), Some(4)]),
        (Revision::V6, [Some(1), None, Some(2)]),
    ];
    for (revision, bits) in rows {
        for (reason, bit) in ExitReason::ALL.into_iter().zip(bits) {
            assert_eq!(reason.bit(revision).map(ReasonMask::bits), bit, "{reason}");
        }
    }
}

#[test]
fn s1_5_exit_field_offsets_depend_on_revision() {
    let layout = |reason, index| RunLayout {
        error: 32,
        reason,
        index,
        data: 48,
    };
    assert_eq!(RunLayout::of(Revision::Mainline), layout(40, 44));
    assert_eq!(RunLayout::of(Revision::V6), layout(36, 40));
}

#[test]
fn s1_9_enable_cap_checks_reason_mask_on_mainline_and_stores_any_on_v6() {
    let einval = Err(Errno::Einval);
    let rows = [
        (Revision::Mainline, 0, Ok(())),
        (Revision::Mainline, 7, Ok(())),
        (Revision::Mainline, 8, einval),
        (Revision::Mainline, 1 << 31, einval),
        (Revision::Mainline, 1 << 32, einval),
        (Revision::Mainline, u64::MAX, einval),
        (Revision::V6, 8, Ok(())),
        (Revision::V6, u64::MAX, Ok(())),
    ];
    for (revision, mask, result) in rows {
        let vm = Vm::new(revision);
        let capability = Capability::user_space_msr(revision);
        assert_eq!(
            vm.enable_cap(capability, mask),
            result,
            "{revision:?} {mask:#x}"
        );
    }
}

/// If `KVM_ENABLE_CAP` refuses a reason mask, the VM keeps its old mask. If the call accepts the mask,
/// the mask holds from the next access on.
#[test]
fn s1_9_new_reason_mask_holds_from_the_next_access() {
    let revision = Revision::Mainline;
    let vm = Vm::new(revision);
    vm.set_filter(&denying(revision, msrgate_filter::Accesses::Both, &[PLAIN]))
        .unwrap();
    let mut vcpu = vm.create_vcpu(registers());
    let capability = Capability::user_space_msr(revision);
    assert_eq!(reason(read(&mut vcpu, PLAIN)), None);
    vm.enable_cap(capability, 4).unwrap();
    vm.enable_cap(capability, 12).unwrap_err();
    assert_eq!(reason(read(&mut vcpu, PLAIN)), Some(ExitReason::Filter));
    vm.enable_cap(capability, 0).unwrap();
    vcpu.run_immediate_exit();
    assert_eq!(reason(write(&mut vcpu, PLAIN, 1)), None);
}

/// v6 keeps the lower 32 bits of a reason mask. Only the bits that v6 knows have an effect.
#[test]
fn s1_9_unknown_reason_mask_bits_on_v6_have_no_effect() {
    for (mask, expected) in [
        (0xfa, Some(ExitReason::Filter)),
        (0xf8, None),
        (2 << 32, None),
    ] {
        let vm = Vm::new(Revision::V6);
        vm.enable_cap(Capability::new(184), mask).unwrap();
        vm.set_filter(&denying(
            Revision::V6,
            msrgate_filter::Accesses::Both,
            &[PLAIN],
        ))
        .unwrap();
        let mut vcpu = vm.create_vcpu(registers());
        assert_eq!(reason(read(&mut vcpu, PLAIN)), expected, "{mask:#x}");
    }
}

#[test]
fn s1_9_enable_cap_refuses_capabilities_other_than_user_space_msr() {
    for revision in Revision::ALL {
        let vm = Vm::new(revision);
        let enabled = Capability::user_space_msr(revision);
        for capability in [0, 184, 185, 188, 189, u32::MAX].map(Capability::new) {
            let result = vm.enable_cap(capability, 0);
            let expected = if capability == enabled {
                Ok(())
            } else {
                Err(Errno::Einval)
            };
            assert_eq!(result, expected, "{revision:?} {capability:?}");
        }
    }
}

#[test]
fn s1_10_capability_numbers_of_v6_find_other_capabilities_on_mainline() {
    let vm = Vm::new(Revision::Mainline);
    for capability in [184, 185].map(Capability::new) {
        assert_eq!(vm.check_extension(capability), Extension::PRESENT);
        assert_eq!(vm.enable_cap(capability, 1), Err(Errno::Einval));
    }
    let vm = Vm::new(Revision::V6);
    for capability in [188, 189].map(Capability::new) {
        assert_eq!(vm.check_extension(capability), Extension::ABSENT);
    }
}
