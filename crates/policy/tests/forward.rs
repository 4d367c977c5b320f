//! Tests of the registers to which the gate may forward a guest's writes.

use msrgate_policy::registers::{Group, Named, Register, all, by_name, group};

fn one(name: &str) -> &'static Register {
    let Named::One(register) = by_name(name) else {
        unreachable!("{name}");
    };
    register
}

#[test]
fn forward_list_has_ten_registers() {
    let forwardable: Vec<&str> = all()
        .iter()
        .filter(|register| register.forward().is_some())
        .map(|register| register.name)
        .collect();
    assert_eq!(
        forwardable,
        [
            "IA32_SYSENTER_CS",
            "IA32_SYSENTER_ESP",
            "IA32_SYSENTER_EIP",
            "IA32_STAR",
            "IA32_LSTAR",
            "IA32_CSTAR",
            "IA32_FMASK",
            "IA32_FS_BASE",
            "IA32_GS_BASE",
            "IA32_KERNEL_GS_BASE",
        ]
    );
}

/// A register is not forwarded if KVM treats the host's write differently: KVM skips the checks of
/// the guest's CPUID, only the host may write the register, or the write has another effect.
#[test]
fn forward_excludes_registers_that_act_differently_for_host() {
    for name in [
        // For the host, KVM skips the checks of CPUID.
        "IA32_EFER",
        "IA32_SPEC_CTRL",
        "IA32_PRED_CMD",
        "IA32_FLUSH_CMD",
        "IA32_TSC_AUX",
        "IA32_DEBUGCTL",
        "IA32_XFD",
        "IA32_XFD_ERR",
        "IA32_XSS",
        "IA32_BNDCFGS",
        "IA32_UMWAIT_CONTROL",
        "IA32_RTIT_CTL",
        "VIRT_SPEC_CTRL",
        "IA32_LBR_CTL",
        "IA32_LBR_DEPTH",
        "MSR_LBR_SELECT",
        "IA32_U_CET",
        "IA32_S_CET",
        "IA32_PL0_SSP",
        // Only the host may write these registers.
        "IA32_ARCH_CAPABILITIES",
        "IA32_PERF_CAPABILITIES",
        "MSR_PLATFORM_INFO",
        "MSR_MISC_FEATURES_ENABLES",
        "IA32_BIOS_SIGN_ID",
        "IA32_SMBASE",
        "MSR_SMI_COUNT",
        "IA32_FEATURE_CONTROL",
        "IA32_PERF_GLOBAL_STATUS",
        "MSR_AMD64_DE_CFG",
        // A write of the host to these registers has another effect than a write of the guest.
        "IA32_TIME_STAMP_COUNTER",
        "IA32_TSC_ADJUST",
        "IA32_APIC_BASE",
        "IA32_MISC_ENABLE",
        "IA32_TSC_DEADLINE",
        "MSR_KVM_SYSTEM_TIME_NEW",
        "IA32_PERF_GLOBAL_STATUS_SET",
        "MSR_CORE_PERF_GLOBAL_OVF_CTRL",
    ] {
        assert_eq!(one(name).forward(), None, "{name}");
    }
    for name in [
        "@pmu",
        "@mce",
        "@vmx",
        "@svm",
        "@kvm",
        "@hyperv",
        "@speculation",
        "@tsc",
    ] {
        let group: &Group = group(name).unwrap();
        let found = group
            .registers()
            .find(|register| register.forward().is_some());
        assert_eq!(found, None, "{name}");
    }
}

#[test]
fn forward_refuses_writes_reserved_to_host() {
    let write = |name, value| one(name).forward().unwrap().write.permits(value);
    assert!(write("IA32_LSTAR", u64::MAX));
    for name in ["IA32_FMASK", "IA32_SYSENTER_CS"] {
        assert!(write(name, 0xffff_ffff), "{name}");
        assert!(!write(name, 0x1_0000_0000), "{name}");
        assert!(!write(name, u64::MAX), "{name}");
    }
}
