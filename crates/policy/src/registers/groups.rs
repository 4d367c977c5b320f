//! Groups: sets of registers that belong together, such as `@mtrr` in a policy.
//!
//! The version of the language fixes the registers of each group. A policy that names a group means
//! the same registers as long as msrgate reads that version. A later version may add registers.

use std::ops::RangeInclusive;

use msrgate_filter::MsrIndex;

use super::{Register, all};

/// A named set of registers. The register table has a name for each index of a group, except for
/// the seventh register of each of AMD's scalable machine-check banks, which is reserved.
#[derive(Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Group {
    /// The name, with its `@`.
    pub name: &'static str,
    /// The description of the group's registers.
    pub summary: &'static str,
    ranges: &'static [RangeInclusive<u32>],
}

/// Returns every group, sorted by name.
#[must_use]
pub fn groups() -> &'static [Group] {
    GROUPS
}

/// Returns the group with this name, which starts with `@`. Case does not matter.
#[must_use]
pub fn group(name: &str) -> Option<&'static Group> {
    GROUPS
        .iter()
        .find(|group| group.name.eq_ignore_ascii_case(name))
}

impl Group {
    /// Returns the indices of the group's registers as sorted ranges. No two ranges overlap or
    /// adjoin each other.
    pub fn ranges(&self) -> impl Iterator<Item = RangeInclusive<MsrIndex>> + use<> {
        let ranges = self.ranges.iter();
        ranges.map(|range| MsrIndex::new(*range.start())..=MsrIndex::new(*range.end()))
    }

    /// Returns true if the group holds `index`.
    #[must_use]
    pub fn contains(&self, index: MsrIndex) -> bool {
        self.ranges.iter().any(|range| range.contains(&index.get()))
    }

    /// Returns the group's registers, sorted by index.
    pub fn registers(&self) -> impl Iterator<Item = &'static Register> {
        all()
            .iter()
            .filter(|register| self.contains(register.index))
    }
}

/// Returns a range of one index.
const fn one(index: u32) -> RangeInclusive<u32> {
    index..=index
}

static GROUPS: &[Group] = &[
    Group {
        name: "@apic",
        summary: "the base address of the local APIC; KVM never filters its x2APIC registers (S3.1)",
        ranges: &[one(0x1b)],
    },
    Group {
        name: "@cet",
        summary: "control-flow enforcement (CET): its settings and the shadow-stack pointers",
        ranges: &[one(0x6a0), one(0x6a2), 0x6a4..=0x6a8],
    },
    Group {
        name: "@hyperv",
        summary: "the paravirtual interface of Microsoft's Hyper-V",
        ranges: HYPERV,
    },
    Group {
        name: "@kvm",
        summary: "KVM's paravirtual interface, with its old and its new indices",
        ranges: &[0x11..=0x12, 0x4b56_4d00..=0x4b56_4d08],
    },
    Group {
        name: "@mce",
        summary: "machine checks: the global registers and the banks, with AMD's scalable banks",
        ranges: MCE,
    },
    Group {
        name: "@microcode",
        summary: "microcode: its revision, the platform ID, and the registers that load an update",
        ranges: &[one(0x17), one(0x79), one(0x8b), one(0xc001_0020)],
    },
    Group {
        name: "@mtrr",
        summary: "memory type ranges (MTRRs): capabilities, variable and fixed ranges, default type",
        ranges: &[
            one(0xfe),
            0x200..=0x213,
            one(0x250),
            0x258..=0x259,
            0x268..=0x26f,
            one(0x2ff),
        ],
    },
    Group {
        name: "@pat",
        summary: "the page attribute table",
        ranges: &[one(0x277)],
    },
    Group {
        name: "@pmu",
        summary: "performance counters, event selection and precise sampling, without uncore counters and branch records",
        ranges: PMU,
    },
    Group {
        name: "@power",
        summary: "power, energy and temperature: RAPL, P-states, C-states, HWP, turbo",
        ranges: POWER,
    },
    Group {
        name: "@segment",
        summary: "the bases of FS and GS, and the base that SWAPGS exchanges with GS",
        ranges: &[0xc000_0100..=0xc000_0102],
    },
    Group {
        name: "@speculation",
        summary: "speculative execution: the processor's weaknesses, and the controls against them",
        ranges: &[
            0x48..=0x49,
            0x10a..=0x10b,
            one(0x10f),
            0x122..=0x123,
            one(0xc001_011f),
            one(0xc001_1029),
        ],
    },
    Group {
        name: "@svm",
        summary: "AMD's virtualization (SVM): enabling, host save area, TSC ratio, doorbell",
        ranges: &[
            one(0xc000_0104),
            0xc001_0114..=0xc001_0115,
            0xc001_0117..=0xc001_0118,
            one(0xc001_011b),
        ],
    },
    Group {
        name: "@syscall",
        summary: "the entry points of SYSCALL and SYSENTER, without EFER, which enables SYSCALL",
        ranges: &[0x174..=0x176, 0xc000_0081..=0xc000_0084],
    },
    Group {
        name: "@tsc",
        summary: "the time-stamp counter (TSC), its adjustment, its deadline, and TSC_AUX",
        ranges: &[one(0x10), one(0x3b), one(0x6e0), one(0xc000_0103)],
    },
    Group {
        name: "@vmx",
        summary: "Intel's virtualization (VMX): its lock and its capabilities",
        ranges: &[one(0x3a), 0x480..=0x493],
    },
];

const HYPERV: &[RangeInclusive<u32>] = &[
    0x4000_0000..=0x4000_0003,
    one(0x4000_0010),
    0x4000_0020..=0x4000_0023,
    one(0x4000_0040),
    0x4000_0070..=0x4000_0073,
    0x4000_0080..=0x4000_0085,
    0x4000_0090..=0x4000_009f,
    0x4000_00b0..=0x4000_00b7,
    0x4000_00e0..=0x4000_00e3,
    0x4000_00f0..=0x4000_00f5,
    0x4000_00ff..=0x4000_0108,
    one(0x4000_0118),
    one(0x4000_1002),
    0x4000_1080..=0x4000_1084,
    0x4000_1090..=0x4000_109f,
];

const MCE: &[RangeInclusive<u32>] = &[
    0x0..=0x1,
    0x179..=0x17b,
    one(0x17d),
    one(0x17f),
    0x280..=0x29f,
    0x400..=0x47f,
    one(0x4d0),
    0xc000_2000..=0xc000_23ff,
    0xc001_0044..=0xc001_004c,
    0xc001_0400..=0xc001_043f,
];

const PMU: &[RangeInclusive<u32>] = &[
    0xc1..=0xc8,
    0x186..=0x18d,
    0x1a6..=0x1a7,
    0x309..=0x30c,
    one(0x329),
    one(0x345),
    0x38d..=0x392,
    0x3f1..=0x3f2,
    0x3f6..=0x3f7,
    0x4c1..=0x4c8,
    one(0x600),
    one(0x1309),
    one(0x14c1),
    0x1900..=0x1903,
    one(0x1980),
    0x1982..=0x1983,
    0xc000_0300..=0xc000_0303,
    0xc001_0000..=0xc001_0007,
    0xc001_0200..=0xc001_020b,
];

/// The registers of `@power`. 0xce, `PLATFORM_INFO`, is left out, because it also tells if CPUID
/// can fault.
const POWER: &[RangeInclusive<u32>] = &[
    one(0xe2),
    0xe7..=0xe8,
    0x198..=0x19d,
    one(0x1a2),
    one(0x1aa),
    0x1ac..=0x1b2,
    one(0x1fc),
    0x3f8..=0x3fa,
    0x3fc..=0x3ff,
    one(0x601),
    one(0x606),
    0x60a..=0x60d,
    0x610..=0x611,
    0x613..=0x614,
    0x618..=0x619,
    0x61b..=0x61c,
    0x620..=0x621,
    0x630..=0x635,
    0x638..=0x63b,
    0x640..=0x642,
    0x648..=0x650,
    0x652..=0x653,
    0x655..=0x656,
    0x658..=0x65c,
    one(0x660),
    one(0x662),
    one(0x664),
    one(0x666),
    0x668..=0x66e,
    one(0x690),
    0x6b0..=0x6b1,
    0x770..=0x774,
    one(0x777),
    0xdb0..=0xdb2,
    0x17d0..=0x17d1,
    0xc001_0041..=0xc001_0042,
    0xc001_0061..=0xc001_006b,
    one(0xc001_0073),
    0xc001_007a..=0xc001_007b,
    0xc001_0299..=0xc001_029b,
    0xc001_02b0..=0xc001_02b5,
];
