//! Removal of names that do not name a register, such as the name of a mask, from the lists of other
//! projects.

use anyhow::ensure;

use super::sources::{Mention, Source};

/// A rule that finds names in one list that look like names of registers, but do not name a
/// register.
struct Rule {
    source: Source,
    matches: fn(&str) -> bool,
    why: &'static str,
}

const RULES: [Rule; 11] = [
    Rule {
        source: Source::Linux,
        matches: |name| {
            name.contains("_BIT_") || name.ends_with("_BIT") || name.ends_with("_SHIFT")
        },
        why: "the place of a bit: IA32_POWER_CTL_BIT_EE is 19",
    },
    Rule {
        source: Source::Linux,
        matches: |name| name.ends_with("_RSVD"),
        why: "a mask of reserved bits: IA32_BNDCFGS_RSVD is 0xffc",
    },
    Rule {
        source: Source::Edk2,
        matches: |name| name.contains("_REGISTER_"),
        why: "a value of a field: IA32_VMX_BASIC_REGISTER_MEMORY_TYPE_WRITE_BACK is 6",
    },
    Rule {
        source: Source::Edk2,
        matches: |name| name.ends_with("_EBC_FREQUENCY_ID_1") || name.ends_with("_PLATFORM_INFO_1"),
        why: "a second layout of a register that is named without _1 too",
    },
    Rule {
        source: Source::FreeBsd,
        matches: |name| name == "MSR_APIC_000",
        why: "the base of the x2APIC registers: no processor has 0x800",
    },
    Rule {
        source: Source::Illumos,
        matches: |name| name == "MSR_AMD_SYSCFG",
        why: "a wrong number: illumos has 0xc0000010, and AMD's register is 0xc0010010",
    },
    Rule {
        source: Source::Xen,
        matches: |name| matches!(name, "MSR_X2APIC_FIRST" | "MSR_X2APIC_LAST"),
        why: "an end of the x2APIC registers, which is not one of them",
    },
    Rule {
        source: Source::Xen,
        matches: |name| {
            name.ends_with("_MASK") && name.contains("_CMT_") || name.ends_with("_FORMAT")
        },
        why: "a mask: MSR_IA32_PERF_CAP_LBR_FORMAT is 0x3f",
    },
    Rule {
        source: Source::VirtualBox,
        matches: |name| name.starts_with("MSR_GIM_HV_RANGE"),
        why: "the first index of a range, whose register has a name of its own",
    },
    Rule {
        source: Source::Coreboot,
        matches: |name| name.ends_with("_SHIFT"),
        why: "the place of a field: PKG_POWER_LIMIT_TIME_SHIFT is 17",
    },
    Rule {
        source: Source::Coreboot,
        matches: |name| name == "CORE_PERF_BOOST_CTRL",
        why: "an offset of a PCI device: the register at 0x15c of D18F4 is no MSR",
    },
];

/// Returns the mentions without those that have a name that matches one of [`RULES`].
///
/// # Errors
///
/// Returns an error if a rule matches no mention. The list has then changed, and the rule should be removed.
pub(super) fn weed(mut mentions: Vec<Mention>) -> anyhow::Result<Vec<Mention>> {
    for rule in RULES {
        let before = mentions.len();
        mentions.retain(|mention| {
            let names = &mention.names;
            mention.source != rule.source || !names.iter().any(|name| (rule.matches)(&name.text))
        });
        ensure!(
            mentions.len() < before,
            "no name matches the rule for {}: remove the rule",
            rule.why
        );
    }
    Ok(mentions)
}
