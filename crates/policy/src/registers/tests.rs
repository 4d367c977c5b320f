use std::collections::{BTreeMap, BTreeSet};

use msrgate_filter::MsrIndex;
use proptest::prelude::*;

use super::names::BY_NAME;
use super::*;

/// The maximum number of MSRs that the bitmap of a filter range covers (S1.8).
const WINDOW: u32 = 0x3000;

fn one(name: &str) -> &'static Register {
    match by_name(name) {
        Named::One(register) => register,
        other => panic!("{name} is {other:?}"),
    }
}

fn key(name: &str) -> String {
    let name = name.to_ascii_uppercase();
    name.strip_prefix("MSR_").unwrap_or(&name).to_owned()
}

#[test]
fn by_index_finds_every_row_and_rows_are_sorted() {
    assert!(all().is_sorted_by(|a, b| a.index < b.index));
    for register in all() {
        assert_eq!(by_index(register.index), Some(register));
    }
    assert_eq!(by_index(MsrIndex::MAX), None);
}

#[test]
fn by_name_finds_register_of_every_name() {
    let mut meanings: BTreeMap<String, Vec<&Register>> = BTreeMap::new();
    for register in all() {
        for name in register.names() {
            meanings.entry(key(name)).or_default().push(register);
        }
        assert_eq!(one(register.name), register, "its own name is its alone");
    }
    let names: usize = meanings.values().map(Vec::len).sum();
    assert_eq!(BY_NAME.len(), names);
    for (key, registers) in meanings {
        for spelling in [key.clone(), format!("msr_{}", key.to_ascii_lowercase())] {
            match by_name(&spelling) {
                Named::One(register) if registers.len() > 1 => {
                    assert!(registers.contains(&register), "{spelling}");
                    assert!(register.name.eq_ignore_ascii_case(&spelling), "{spelling}");
                }
                Named::One(register) => assert_eq!(vec![register], registers),
                Named::Several(several) => assert_eq!(several, registers),
                Named::None(_) => panic!("{spelling} is not found"),
            }
        }
    }
}

#[test]
fn register_names_are_valid_policy_keys() {
    for register in all() {
        for name in register.names() {
            let fit = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
            assert!(name.bytes().all(fit), "{name}");
            assert!(!name.as_bytes()[0].is_ascii_digit(), "{name}");
        }
        assert!(register.summary.len() <= 90, "{}", register.name);
        assert!(!register.summary.ends_with('.'), "{}", register.name);
        assert!(register.sources.iter().count() >= 1, "{}", register.name);
    }
}

#[test]
fn named_registers_lie_in_eight_windows_of_0x3000_indices() {
    let mut windows: Vec<u32> = Vec::new();
    for register in all() {
        let index = register.index.get();
        if windows.last().is_none_or(|base| index - base >= WINDOW) {
            windows.push(index);
        }
    }
    assert_eq!(windows.len(), 8, "{windows:#x?}");
}

#[test]
fn by_name_finds_commonly_used_names() {
    for (name, index) in [
        ("IA32_EFER", 0xc000_0080),
        ("MSR_EFER", 0xc000_0080),
        ("EFER", 0xc000_0080),
        ("efer", 0xc000_0080),
        ("IA32_LSTAR", 0xc000_0082),
        ("MSR_LSTAR", 0xc000_0082),
        ("LSTAR", 0xc000_0082),
        ("IA32_STAR", 0xc000_0081),
        ("IA32_FMASK", 0xc000_0084),
        ("MSR_SYSCALL_MASK", 0xc000_0084),
        ("IA32_FS_BASE", 0xc000_0100),
        ("IA32_KERNEL_GS_BASE", 0xc000_0102),
        ("IA32_TSC_AUX", 0xc000_0103),
        ("IA32_TIME_STAMP_COUNTER", 0x10),
        ("MSR_IA32_TSC", 0x10),
        ("IA32_PLATFORM_ID", 0x17),
        ("IA32_APIC_BASE", 0x1b),
        ("MSR_SMI_COUNT", 0x34),
        ("IA32_TSC_ADJUST", 0x3b),
        ("IA32_SPEC_CTRL", 0x48),
        ("IA32_PRED_CMD", 0x49),
        ("IA32_BIOS_UPDT_TRIG", 0x79),
        ("IA32_BIOS_SIGN_ID", 0x8b),
        ("MSR_AMD64_PATCH_LEVEL", 0x8b),
        ("MSR_IA32_UCODE_REV", 0x8b),
        ("IA32_MTRRCAP", 0xfe),
        ("IA32_ARCH_CAPABILITIES", 0x10a),
        ("IA32_FLUSH_CMD", 0x10b),
        ("IA32_SYSENTER_CS", 0x174),
        ("IA32_SYSENTER_ESP", 0x175),
        ("IA32_SYSENTER_EIP", 0x176),
        ("IA32_MISC_ENABLE", 0x1a0),
        ("IA32_DEBUGCTL", 0x1d9),
        ("IA32_MTRR_PHYSBASE0", 0x200),
        ("IA32_PAT", 0x277),
        ("MSR_PKG_POWER_LIMIT", 0x610),
        ("MSR_PPERF", 0x64e),
        ("IA32_U_CET", 0x6a0),
        ("IA32_S_CET", 0x6a2),
        ("IA32_PL0_SSP", 0x6a4),
        ("IA32_TSC_DEADLINE", 0x6e0),
        ("IA32_XSS", 0xda0),
        ("HV_X64_MSR_GUEST_OS_ID", 0x4000_0000),
        ("HV_X64_MSR_HYPERCALL", 0x4000_0001),
        ("HV_X64_MSR_RESET", 0x4000_0003),
        ("MSR_KVM_WALL_CLOCK", 0x11),
        ("MSR_KVM_SYSTEM_TIME_NEW", 0x4b56_4d01),
        ("MSR_K7_HWCR", 0xc001_0015),
        ("HWCR", 0xc001_0015),
        ("MSR_K8_INT_PENDING_MSG", 0xc001_0055),
        ("MSR_AMD64_DC_CFG", 0xc001_1022),
        ("MSR_SANDY_BRIDGE_PKG_POWER_INFO", 0x614),
        ("MSR_PKG_POWER_INFO", 0x614),
        ("MSR_SILVERMONT_PKG_POWER_INFO", 0x66e),
        ("MSR_CORE_C3_RESIDENCY", 0x3fc),
        ("MSR_SKYLAKE_CORE_C3_RESIDENCY", 0x662),
        ("IA32_PMC0", 0xc1),
        ("IA32_PERFCTR0", 0xc1),
        ("IA32_A_PMC0", 0x4c1),
        ("PERF_CTR0", 0xc001_0201),
    ] {
        assert_eq!(one(name).index, MsrIndex::new(index), "{name}");
    }
}

#[test]
fn register_names_follow_sdm_or_common_use() {
    for name in [
        "IA32_EFER",
        "IA32_TIME_STAMP_COUNTER",
        "IA32_BIOS_UPDT_TRIG",
        "IA32_MTRRCAP",
        "IA32_MC31_STATUS",
        "MSR_SMI_COUNT",
        "MSR_PKG_POWER_LIMIT",
        "MSR_PKG_POWER_INFO",
        "MSR_CORE_C3_RESIDENCY",
        "MSR_CORE_C6_RESIDENCY",
        "MSR_PKG_C2_RESIDENCY",
        "MSR_PKG_C6_RESIDENCY",
        "MSR_CORE_PERF_LIMIT_REASONS",
        "IA32_PMC0",
        "IA32_A_PMC0",
        "MSR_K7_HWCR",
        "MSR_KVM_WALL_CLOCK",
        "HV_X64_MSR_RESET",
    ] {
        assert_eq!(one(name).name, name);
    }
}

#[test]
fn by_name_returns_all_registers_of_shared_name() {
    for (name, indices) in [
        ("MSR_LER_FROM_LIP", &[0x1d7, 0x1dd, 0x1de][..]),
        ("MSR_LASTBRANCH_0_FROM_IP", &[0x40, 0x680]),
        ("u_pmon_ctr0", &[0x709, 0xc16]),
        // Code bases use these for different MSRs: AMD's manual and FreeBSD, Linux and EDK2, the SDM
        // of old processors and FreeBSD.
        ("MSR_PERFCTR0", &[0xc1, 0xc001_0004]),
        ("PerfCtr1", &[0xc2, 0xc001_0005]),
        ("PerfEvtSel0", &[0x186, 0xc001_0000]),
        ("MSR_IA32_PMC0", &[0xc1, 0x4c1]),
        ("MSR_MC4_CTL", &[0x40c, 0x410]),
    ] {
        let Named::Several(several) = by_name(name) else {
            panic!("{name}");
        };
        let found: Vec<u32> = several
            .iter()
            .map(|register| register.index.get())
            .collect();
        assert_eq!(found, indices, "{name}");
    }
}

#[test]
fn by_name_finds_no_register_for_names_of_fields_and_values() {
    for name in [
        "MSR_IA32_POWER_CTL_BIT_EE",
        "MSR_IA32_BNDCFGS_RSVD",
        "IA32_VMX_BASIC_REGISTER_MEMORY_TYPE_WRITE_BACK",
        "IA32_MTRR_VARIABLE_COUNT",
        "IA32_STM_FEATURES_IA32E",
    ] {
        assert!(matches!(by_name(name), Named::None(_)), "{name}");
    }
    assert_eq!(by_index(MsrIndex::new(0xffc)), None);
}

#[test]
fn by_name_suggests_names_for_misspelt_one() {
    for (misspelt, meant) in [
        ("IA32_EFFER", "IA32_EFER"),
        ("IA32_LSTR", "IA32_LSTAR"),
        ("IA32_TSC_DEADLIN", "IA32_TSC_DEADLINE"),
        ("IA32_SYSENTER_PIE", "IA32_SYSENTER_EIP"),
        ("FRED_CONFIG", "IA32_FRED_CONFIG"),
        ("MSR_KVM_SYSTM_TIME_NEW", "MSR_KVM_SYSTEM_TIME_NEW"),
        ("hv_x64_msr_hypercal", "HV_X64_MSR_HYPERCALL"),
    ] {
        let Named::None(names) = by_name(misspelt) else {
            panic!("{misspelt}");
        };
        assert_eq!(names.first(), Some(&meant), "{misspelt}: {names:?}");
        assert!(names.len() <= 3, "{names:?}");
    }
    for nonsense in ["", "_", "MSR_", "the quick brown fox", "IA32_ÄÖÜ", "\u{0}"] {
        assert!(matches!(by_name(nonsense), Named::None(_)), "{nonsense}");
    }
    assert_eq!(by_name(&"X".repeat(1 << 20)), Named::None(Vec::new()));
}

/// `MSR_IA32_PMC0` may mean two registers, but `IA32_PMC0` is the name that msrgate's table gives
/// to one of them.
#[test]
fn by_name_returns_one_register_for_own_name_that_another_has_with_prefix() {
    assert_eq!(one("IA32_PMC0").index, MsrIndex::new(0xc1));
    assert_eq!(one("ia32_pmc0").index, MsrIndex::new(0xc1));
    assert!(matches!(by_name("msr_ia32_pmc0"), Named::Several(_)));
}

#[test]
fn by_name_finds_names_of_other_code_bases() {
    for (name, index) in [
        ("MSR_ARCH_CAPABILITIES", 0x10a),
        ("MSR_VMX_BASIC", 0x480),
        ("MSR_AMD_FSBASE", 0xc000_0100),
        ("X86X_MSR_TSC", 0x10),
        ("X86X_IA32_MSR_MISC_ENABLE", 0x1a0),
        ("X64_MSR_KERNEL_GS_BASE", 0xc000_0102),
        ("HV_X64_MSR_GUEST_CRASH_P0", 0x4000_0100),
        ("MSR_INTC_SEP_EIP", 0x176),
        ("MSR_MTRR4kBase", 0x268),
        ("MSR_KGSBASE", 0xc000_0102),
        ("KGSBASE", 0xc000_0102),
        ("MSR_K8_HWCR", 0xc001_0015),
        ("MSR_UARCH_MISC_CTRL", 0x1b01),
        ("MSR_CESR", 0x11),
        ("MSR_GIM_HV_GUEST_OS_ID", 0x4000_0000),
        ("MSR_GIM_HV_SINT3", 0x4000_0093),
        ("MSR_GIM_HV_POWER_STATE_TRIGGER_C1", 0x4000_00c1),
        ("MSR_GIM_HV_CRASH_CTL", 0x4000_0105),
        ("MSR_SKL_UNCORE_PERF_GLOBAL_CTRL", 0xe01),
        ("MSR_HSW_EP_PMON_GLOBAL_CTRL", 0x700),
        ("MSR_FLEX_RATIO", 0x194),
        ("MSR_PREFETCH_CTL", 0x1a4),
        ("MSR_EMULATE_PM_TIMER", 0x121),
        ("MSR_PKG_POWER_SKU", 0x614),
        ("MSR_PKG_POWER_SKU_UNIT", 0x606),
        ("MSR_DDR_RAPL_LIMIT", 0x618),
        ("MSR_C_STATE_LATENCY_CONTROL_0", 0x60a),
        ("MSR_C_STATE_LATENCY_CONTROL_5", 0x635),
        ("MSR_COUNTER_24_MHZ", 0x637),
        ("MSR_EVICT_CTL", 0x2e0),
        ("MSR_LT_CONTROL", 0x2e7),
        ("MSR_PIC_MSG_CONTROL", 0x2e),
        ("MSR_VR_MISC_CONFIG2", 0x636),
        ("IA32_ENERGY_PERFORMANCE_BIAS", 0x1b0),
        ("MSR_BIOS_UPGD_TRIG", 0x7a),
        ("MSR_INTPEND", 0xc001_0055),
        ("MSR_COFVID_STS", 0xc001_0071),
        ("MSR_CSTATE_ADDRESS", 0xc001_0073),
        ("PS_LIM_REG", 0xc001_0061),
        ("PS_CTL_REG", 0xc001_0062),
        ("PS_STS_REG", 0xc001_0063),
        ("SMM_BASE_MSR", 0xc001_0111),
        ("CPU_ID_FEATURES_MSR", 0xc001_1004),
        ("CPU_ID_HYPER_EXT_FEATURES", 0xc001_100d),
        ("BU_CFG3_MSR", 0xc001_102b),
        ("PSP_ADDR_MSR", 0xc001_10a2),
        ("S3_RESUME_EIP_MSR", 0xc001_10e0),
        ("MC4_MISC0", 0x413),
        ("BX_MSR_PERFCTR0", 0xc1),
        ("BX_MSR_PMC0", 0xc1),
        ("BX_MSR_IA32_USER_MSR_CTL", 0x1c),
        ("BX_MSR_LASTINTOIP", 0x1dd),
        ("BX_MSR_KERNELGSBASE", 0xc000_0102),
        ("BX_SVM_HSAVE_PA_MSR", 0xc001_0117),
        ("kIa32VmxTrueProcBasedCtls", 0x48e),
        ("kIa32KernelGsBase", 0xc000_0102),
    ] {
        assert_eq!(one(name).index, MsrIndex::new(index), "{name}");
    }
    // illumos has a wrong number for it: 0xc0000010.
    assert_eq!(by_index(MsrIndex::new(0xc000_0010)), None);
    // VirtualBox's name of the first index of a range is no name of the register that has this index.
    assert!(matches!(by_name("MSR_GIM_HV_RANGE5_FIRST"), Named::None(_)));
    // coreboot's name of a place in the configuration of a PCI device, 0x15c, is no name of an MSR.
    assert!(matches!(by_name("CORE_PERF_BOOST_CTRL"), Named::None(_)));
}

#[test]
fn by_name_finds_former_names_of_linux_and_names_of_msr_safe() {
    for (name, index) in [
        ("MSR_ARCH_PERFMON_PERFCTR1", 0xc2),
        ("MSR_NHM_PLATFORM_INFO", 0xce),
        ("MSR_NHM_SNB_PKG_CST_CFG_CTL", 0xe2),
        ("MSR_ARCH_PERFMON_EVENTSEL0", 0x186),
        ("SMSR_PERF_STATUS", 0x198),
        ("SMSR_PERF_CTL", 0x199),
        ("MSR_NHM_TURBO_RATIO_LIMIT", 0x1ad),
        ("MSR_IVT_TURBO_RATIO_LIMIT", 0x1ae),
        ("MSR_F16H_DR0_ADDR_MASK", 0xc001_1027),
    ] {
        assert_eq!(one(name).index.get(), index, "{name}");
    }
}

#[test]
fn by_name_proposes_register_for_name_with_prefix_of_other_code_base() {
    for (name, wanted) in [
        ("MSR_K8_LSTAR", "IA32_LSTAR"),
        ("X86X_MSR_FRED_CONFIG", "IA32_FRED_CONFIG"),
        ("MSR_IA32_K7_HWCR", "MSR_K7_HWCR"),
        ("MSR_AMD_TSC_DEADLINE_MSR", "IA32_TSC_DEADLINE"),
        ("IA32_KERNELGSBASE", "IA32_KERNEL_GS_BASE"),
        ("MSR_TIMESTAMPCOUNTER", "IA32_TIME_STAMP_COUNTER"),
        ("FLUSH_CMD_", "IA32_FLUSH_CMD"),
        ("BX_MSR_PLATFORM_INFO", "MSR_PLATFORM_INFO"),
        ("SMSR_PLATFORM_INFO", "MSR_PLATFORM_INFO"),
        ("kIa32SpecCtrl", "IA32_SPEC_CTRL"),
    ] {
        let Named::None(near) = by_name(name) else {
            panic!("{name} is a name");
        };
        assert_eq!(near[0], wanted, "{name}");
        let Found::Alike(alike) = search(name) else {
            panic!("{name}: {:?}", search(name));
        };
        assert!(alike.contains(&one(wanted)), "{name}");
    }
}

#[test]
fn macro_with_number_proposes_register_of_that_number() {
    for (name, index) in [
        ("MSR_IA32_MCx_CTL(2)", 0x408),
        ("MSR_IA32_MCx_STATUS(1)", 0x405),
        ("MSR_IA32_MCx_CTL2(0x1f)", 0x29f),
        ("MSR_AMD64_MCx_MASK(4)", 0xc001_0048),
        ("MSR_IA32_MTRR_PHYSMASK(3)", 0x207),
        ("MTRRphysBase_MSR(0)", 0x200),
        ("MSR_RTIT_ADDR_B(1)", 0x583),
        ("`MSR_IA32_MCx_CTL( 2 )`,", 0x408),
    ] {
        let meant = by_index(MsrIndex::new(index)).unwrap();
        assert_eq!(by_name(name), Named::None(vec![meant.name]), "{name}");
        assert_eq!(search(name), Found::Alike(vec![meant]), "{name}");
    }
    for name in ["MSR_IA32_MCx_CTL(x)", "MSR_IA32_MCx_CTL(99)", "(2)", "_(2"] {
        assert_eq!(search(name).registers(), [] as [&Register; 0], "{name}");
    }
}

#[test]
fn search_ignores_punctuation_around_pasted_name() {
    for text in [
        "MSR_IA32_XSS,",
        "`MSR_IA32_XSS`",
        "`IA32_XSS`,",
        "(IA32_XSS).",
        "\"IA32_XSS\";",
        "&MSR_IA32_XSS)",
        "<IA32_XSS>:",
        "0xda0,",
    ] {
        assert_eq!(search(text).registers(), [one("IA32_XSS")], "{text}");
    }
    for text in ["-0x10", "0x10..", "``", ","] {
        assert_eq!(search(text).registers(), [] as [&Register; 0], "{text}");
    }
    // A policy does not take such a name, but the error proposes the right one.
    assert_eq!(by_name("`MSR_IA32_XSS`,"), Named::None(vec!["IA32_XSS"]));
}

#[test]
fn suggestions_have_each_shared_name_once() {
    let Named::None(near) = by_name("MSR_P4_LASTBRANCH_3") else {
        panic!("MSR_P4_LASTBRANCH_3 is a name");
    };
    assert!(near.contains(&"MSR_LASTBRANCH_3"), "{near:?}");
    let mut once = near.clone();
    once.sort_unstable();
    once.dedup();
    assert_eq!(once.len(), near.len(), "{near:?}");
}

#[test]
fn search_finds_registers_by_index_name_group_and_word() {
    let found = |query: &str| search(query).registers();
    let first = |query: &str| found(query).first().map(|register| register.name);
    assert_eq!(first("0x8b"), Some("IA32_BIOS_SIGN_ID"));
    assert_eq!(found("0x8b").len(), 1);
    assert_eq!(first("efer"), Some("IA32_EFER"));
    assert_eq!(first("patch_level"), Some("IA32_BIOS_SIGN_ID"));
    assert_eq!(first("sysenter"), Some("IA32_SYSENTER_CS"));
    assert!(found("microcode").contains(&one("IA32_BIOS_UPDT_TRIG")));
    assert!(found("rapl power limit").contains(&one("MSR_PKG_POWER_LIMIT")));
    assert_eq!(found("@pat"), [one("IA32_PAT")]);
    for nothing in ["", " ", "0xfff", "@", "@nothing", "no such word"] {
        assert!(found(nothing).is_empty(), "{nothing}");
    }
}

#[test]
fn search_for_name_lists_register_of_that_name_before_others() {
    let Found::Registers { registers, exact } = search("MSR_EFER") else {
        panic!("a name");
    };
    assert_eq!((exact, registers[0]), (1, one("IA32_EFER")));
    // The name of a register with a high index, which many other names contain.
    let Found::Registers { registers, exact } = search("star") else {
        panic!("a name");
    };
    assert_eq!((exact, registers[0]), (1, one("IA32_STAR")));
    assert!(registers.contains(&one("IA32_LSTAR")));
    assert!(matches!(
        search("MSR_PERFCTR0"),
        Found::Registers { exact: 2, .. }
    ));
}

#[test]
fn search_understands_spellings_of_index() {
    for (query, wanted) in [
        ("3221291029", &[0xc001_0015][..]),
        ("c0010015", &[0xc001_0015]),
        ("MSRC001_0015", &[0xc001_0015]),
        ("1C9H", &[0x1c9]),
        ("0xc001_0115", &[0xc001_0115]),
        ("174", &[0xae, 0x174]),
        ("0x150", &[0x150]),
    ] {
        let wanted: Vec<_> = wanted.iter().copied().map(MsrIndex::new).collect();
        assert_eq!(search(query), Found::Indices(wanted), "{query}");
    }
    assert_eq!(
        search("Core::X86::Msr::HWCR").registers()[0],
        one("MSR_K7_HWCR")
    );
}

#[test]
fn search_without_result_proposes_similar_name() {
    for (query, wanted) in [("IA32_EFFER", "IA32_EFER"), ("@mttr", "@mtrr")] {
        let Found::Nothing(near) = search(query) else {
            panic!("{query}");
        };
        assert_eq!(near[0], wanted);
    }
}

/// The table names every MSR of the SDM's list of architectural ones.
#[test]
fn registers_include_every_architectural_msr_of_sdm() {
    let list = include_str!("../../data/sdm-table-2-2.tsv");
    let mut count = 0;
    for line in list.lines().filter(|line| !line.starts_with('#')) {
        let columns: Vec<&str> = line.split('\t').collect();
        let number = |column: usize| columns[column].parse::<u32>().unwrap();
        let first = u32::from_str_radix(columns[0].trim_start_matches("0x"), 16).unwrap();
        let indices = (0..number(1)).map(|nth| first + nth * number(2));
        for index in indices {
            let register = by_index(MsrIndex::new(index));
            assert!(register.is_some(), "{index:#x} has no name: {line}");
            count += 1;
        }
        let meant = match by_name(columns[3]) {
            Named::One(register) => vec![register],
            Named::Several(several) => several,
            Named::None(_) => panic!("{line} has an unknown name"),
        };
        assert!(
            meant.iter().any(|register| register.index.get() == first),
            "{line}"
        );
    }
    assert!(count > 650, "{count}");
}

#[test]
fn groups_have_sorted_disjoint_named_registers() {
    assert!(groups().is_sorted_by(|a, b| a.name < b.name));
    for group in groups() {
        assert!(group.name.starts_with('@'));
        assert_eq!(super::group(&group.name.to_uppercase()), Some(group));
        let ranges: Vec<_> = group.ranges().collect();
        assert!(
            ranges.iter().all(|range| range.start() <= range.end()),
            "{}",
            group.name
        );
        let apart = |pair: &[std::ops::RangeInclusive<MsrIndex>]| {
            pair[0].end().get() + 1 < pair[1].start().get()
        };
        assert!(ranges.windows(2).all(apart), "{}", group.name);
        for index in ranges
            .iter()
            .flat_map(|range| range.start().get()..=range.end().get())
        {
            let reserved = (0xc000_2000..0xc000_2400).contains(&index) && index & 0xf == 7;
            let named = by_index(MsrIndex::new(index)).is_some();
            assert!(named != reserved, "{}: {index:#x}", group.name);
        }
    }
    assert_eq!(group("mtrr"), None, "a group has its @");
}

#[test]
fn groups_hold_every_register_of_their_kind() {
    for (name, belongs) in [
        ("@mtrr", "MTRR"),
        ("@vmx", "IA32_VMX_"),
        ("@kvm", "MSR_KVM_"),
        ("@hyperv", "HV_X64_MSR_"),
        ("@mce", "SMCA"),
    ] {
        let group = group(name).unwrap();
        for register in all()
            .iter()
            .filter(|register| register.name.contains(belongs))
        {
            assert!(
                group.contains(register.index),
                "{} in {name}",
                register.name
            );
        }
    }
}

#[test]
fn fields_are_sorted_within_register() {
    let mut with_fields = BTreeSet::new();
    for register in all() {
        let fields = register.fields();
        assert!(
            fields.is_sorted_by_key(|field| field.low),
            "{}",
            register.name
        );
        for field in fields {
            assert!(
                field.low <= field.high && field.high < 64,
                "{}",
                register.name
            );
            assert!(!field.name.is_empty() && field.summary.len() <= 90);
            with_fields.insert(register.index);
        }
    }
    assert_eq!(with_fields.len(), fields::FIELDS.len());
}

/// The table names the MSRs that guests read on six CPU models, and that three Linux kernels
/// accessed at boot.
#[test]
fn registers_include_every_msr_seen_in_guests() {
    let lists = [
        include_str!("../../data/seen/linux-boot-msrs.txt"),
        include_str!(
            "../../data/seen/msr_list_GNR_TO_T2_6.1_INTEL_GRANITE_RAPIDS_6.18host_6.18guest.csv"
        ),
        include_str!(
            "../../data/seen/msr_list_SPR_TO_T2_6.1_INTEL_SAPPHIRE_RAPIDS_6.18host_6.18guest.csv"
        ),
        include_str!("../../data/seen/msr_list_T2A_AMD_MILAN_6.18host_6.18guest.csv"),
        include_str!("../../data/seen/msr_list_T2CL_INTEL_CASCADELAKE_6.18host_6.18guest.csv"),
        include_str!("../../data/seen/msr_list_T2CL_INTEL_ICELAKE_6.18host_6.18guest.csv"),
        include_str!("../../data/seen/msr_list_T2S_INTEL_CASCADELAKE_6.18host_6.18guest.csv"),
    ];
    let mut seen = 0;
    for line in lists.iter().flat_map(|list| list.lines()) {
        let Some(digits) = line.strip_prefix("0x") else {
            continue; // a heading
        };
        let digits: String = digits.chars().take_while(char::is_ascii_hexdigit).collect();
        // Some of Firecracker's "addresses" are values of 64 bits that went into the wrong column.
        if let Ok(index) = u32::from_str_radix(&digits, 16) {
            assert!(
                by_index(MsrIndex::new(index)).is_some(),
                "{index:#x} has no name"
            );
            seen += 1;
        }
    }
    assert!(seen > 1000, "the lists were read: {seen}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn lookup_of_any_text_does_not_panic(text in ".{0,80}") {
        let _ = (by_name(&text), search(&text), group(&text));
    }

    #[test]
    fn by_name_suggests_name_with_one_wrong_letter(row in 0..all().len(), place in 0_usize..64, letter in "[A-Z]") {
        let name = all()[row].name;
        prop_assume!(name.len() >= 8);
        let place = 5 + place % (name.len() - 5);
        let misspelt = format!("{}{letter}{}", &name[..place], &name[place + 1..]);
        match by_name(&misspelt) {
            Named::None(names) => prop_assert!(!names.is_empty(), "{}", misspelt),
            Named::One(_) | Named::Several(_) => {}
        }
    }
}

#[test]
fn register_is_offered_if_cpuid_bit_of_one_of_its_features_is_set() {
    let offered = |index: u32, on: &str| is_offered(MsrIndex::new(index), |bit| bit.feature == on);
    assert!(offered(0xc000_0103, "RDTSCP") && offered(0xc000_0103, "RDPID"));
    assert!(!offered(0xc000_0103, "XSAVES"));
    assert!(offered(0x9b, "XSAVES"), "no feature speaks of it");
}
