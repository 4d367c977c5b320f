//! Features of CPUID, with the registers that a guest with the feature expects.
//!
//! The table is written by hand: Intel's rows from SDM volume 4, table 2-2, and the chapters it
//! refers to; AMD's from APM volume 3, appendix E, and volume 2; KVM's from the kernel's
//! documentation of its CPUID leaves. Rows 7/EDX 26 to 31 also follow Intel's documents on
//! speculative execution. On 2026-11-30, the rows for PDCM, MPX, `INTEL_PT`, DS, `CET_SS`, XSAVES and XFD were
//! compared with public C constants made from the text of table 2-2, which have each register's
//! condition; they agree, and no other condition of that list contradicts a row. The table has the accesses that software makes after it sees
//! the bit: software that sees SYSCALL writes `IA32_STAR`, and does not need to read it. The table
//! leaves out registers whose number varies (performance monitoring, machine-check banks, branch
//! records), and features that are instructions alone (RDTSC).

use std::ops::RangeInclusive;

use msrgate_filter::{Access, MsrIndex};
use msrgate_program::{CpuidBit, CpuidRegister};

/// A bit of CPUID, and the registers that come with it.
#[derive(Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Feature {
    /// The CPUID bit that is set if a guest has the feature.
    pub bit: CpuidBit,
    /// The document that describes the feature.
    pub source: &'static str,
    reads: &'static [RangeInclusive<u32>],
    writes: &'static [RangeInclusive<u32>],
}

impl Feature {
    /// Returns the registers for which `access` is expected to work, sorted by index.
    pub fn msrs(&self, access: Access) -> impl Iterator<Item = MsrIndex> {
        let ranges = match access {
            Access::Read => self.reads,
            Access::Write => self.writes,
        };
        ranges.iter().cloned().flatten().map(MsrIndex::new)
    }
}

/// Returns every feature, sorted by leaf, register and bit.
#[must_use]
pub fn features() -> &'static [Feature] {
    &FEATURES
}

/// Returns true if a guest has this register, as far as CPUID tells: a feature that brings the
/// register has its bit set, or no feature of the table brings the register. If the result is
/// false, the guest gets #GP for the register, even if the host can read it.
#[must_use]
pub fn is_offered(index: MsrIndex, is_set: impl Fn(&CpuidBit) -> bool) -> bool {
    let brings = |feature: &&Feature| {
        let mut msrs = Access::ALL
            .into_iter()
            .flat_map(|access| feature.msrs(access));
        msrs.any(|one| one == index)
    };
    let mut features = FEATURES.iter().filter(brings).peekable();
    features.peek().is_none() || features.any(|feature| is_set(&feature.bit))
}

use CpuidRegister::{Eax, Ebx, Ecx, Edx};

const SDM: &str = "SDM volume 4, table 2-2";
const APM: &str = "APM volume 3, appendix E";
const KVM: &str = "Linux, Documentation/virt/kvm/x86/cpuid.rst";

type Leaf = (u32, u32, CpuidRegister);

const LEAF_1_ECX: Leaf = (1, 0, Ecx);
const LEAF_1_EDX: Leaf = (1, 0, Edx);
const LEAF_7_EBX: Leaf = (7, 0, Ebx);
const LEAF_7_ECX: Leaf = (7, 0, Ecx);
const LEAF_7_EDX: Leaf = (7, 0, Edx);
const XSAVE: Leaf = (0xd, 1, Eax);
const PARAVIRTUAL: Leaf = (0x4000_0001, 0, Eax);
const EXTENDED_ECX: Leaf = (0x8000_0001, 0, Ecx);
const EXTENDED_EDX: Leaf = (0x8000_0001, 0, Edx);
const EXTENDED_8_EBX: Leaf = (0x8000_0008, 0, Ebx);

const fn row(
    (leaf, subleaf, register): Leaf,
    (bit, feature): (u8, &'static str),
    source: &'static str,
    reads: &'static [RangeInclusive<u32>],
    writes: &'static [RangeInclusive<u32>],
) -> Feature {
    Feature {
        bit: CpuidBit {
            leaf,
            subleaf,
            register,
            bit,
            feature,
        },
        source,
        reads,
        writes,
    }
}

/// Returns the feature of registers that software reads and writes.
const fn both(
    leaf: Leaf,
    bit: (u8, &'static str),
    source: &'static str,
    msrs: &'static [RangeInclusive<u32>],
) -> Feature {
    row(leaf, bit, source, msrs, msrs)
}

/// Returns the feature of registers that software only reads.
const fn reads(
    leaf: Leaf,
    bit: (u8, &'static str),
    source: &'static str,
    msrs: &'static [RangeInclusive<u32>],
) -> Feature {
    row(leaf, bit, source, msrs, &[])
}

/// Returns the feature of registers that software writes and does not need to read.
const fn writes(
    leaf: Leaf,
    bit: (u8, &'static str),
    source: &'static str,
    msrs: &'static [RangeInclusive<u32>],
) -> Feature {
    row(leaf, bit, source, &[], msrs)
}

const fn one(index: u32) -> RangeInclusive<u32> {
    index..=index
}

/// The memory type range registers that software writes. The table has only the first two variable
/// ranges: the number of further ones is in the capabilities register.
const MTRR: &[RangeInclusive<u32>] = &[
    0x200..=0x203,
    one(0x250),
    0x258..=0x259,
    0x268..=0x26f,
    one(0x2ff),
];

const MTRR_READS: &[RangeInclusive<u32>] = &[
    one(0xfe),
    0x200..=0x203,
    one(0x250),
    0x258..=0x259,
    0x268..=0x26f,
    one(0x2ff),
];

static FEATURES: [Feature; 44] = [
    // PROCBASED_CTLS2, 0x48b, needs bit 63 of PROCBASED_CTLS, too.
    reads(LEAF_1_ECX, (5, "VMX"), SDM, &[one(0x3a), 0x480..=0x48a]),
    reads(LEAF_1_ECX, (15, "PDCM"), SDM, &[one(0x345)]),
    writes(LEAF_1_ECX, (24, "TSC_DEADLINE"), SDM, &[one(0x6e0)]),
    both(LEAF_1_EDX, (9, "APIC"), SDM, &[one(0x1b)]),
    writes(LEAF_1_EDX, (11, "SEP"), SDM, &[0x174..=0x176]),
    row(LEAF_1_EDX, (12, "MTRR"), SDM, MTRR_READS, MTRR),
    row(
        LEAF_1_EDX,
        (14, "MCA"),
        SDM,
        &[0x179..=0x17a],
        &[one(0x17a)],
    ),
    both(LEAF_1_EDX, (16, "PAT"), SDM, &[one(0x277)]),
    both(LEAF_1_EDX, (21, "DS"), SDM, &[one(0x600)]),
    both(LEAF_7_EBX, (1, "TSC_ADJUST"), SDM, &[one(0x3b)]),
    both(LEAF_7_EBX, (14, "MPX"), SDM, &[one(0xd90)]),
    both(LEAF_7_EBX, (25, "INTEL_PT"), SDM, &[0x570..=0x571]),
    both(LEAF_7_ECX, (5, "WAITPKG"), SDM, &[one(0xe1)]),
    both(
        LEAF_7_ECX,
        (7, "CET_SS"),
        SDM,
        &[one(0x6a0), one(0x6a2), 0x6a4..=0x6a8],
    ),
    both(LEAF_7_ECX, (22, "RDPID"), SDM, &[one(0xc000_0103)]),
    both(LEAF_7_ECX, (30, "SGX_LC"), SDM, &[0x8c..=0x8f]),
    both(LEAF_7_EDX, (19, "ARCH_LBR"), SDM, &[0x14ce..=0x14cf]),
    both(LEAF_7_EDX, (20, "CET_IBT"), SDM, &[one(0x6a0), one(0x6a2)]),
    row(
        LEAF_7_EDX,
        (26, "SPEC_CTRL"),
        SDM,
        &[one(0x48)],
        &[0x48..=0x49],
    ),
    both(LEAF_7_EDX, (27, "STIBP"), SDM, &[one(0x48)]),
    writes(LEAF_7_EDX, (28, "L1D_FLUSH"), SDM, &[one(0x10b)]),
    reads(LEAF_7_EDX, (29, "ARCH_CAPABILITIES"), SDM, &[one(0x10a)]),
    reads(LEAF_7_EDX, (30, "CORE_CAPABILITIES"), SDM, &[one(0xcf)]),
    both(LEAF_7_EDX, (31, "SSBD"), SDM, &[one(0x48)]),
    both(XSAVE, (3, "XSAVES"), SDM, &[one(0xda0)]),
    both(XSAVE, (4, "XFD"), SDM, &[0x1c4..=0x1c5]),
    both(PARAVIRTUAL, (0, "KVM_CLOCKSOURCE"), KVM, &[0x11..=0x12]),
    both(
        PARAVIRTUAL,
        (3, "KVM_CLOCKSOURCE2"),
        KVM,
        &[0x4b56_4d00..=0x4b56_4d01],
    ),
    both(PARAVIRTUAL, (4, "KVM_ASYNC_PF"), KVM, &[one(0x4b56_4d02)]),
    both(PARAVIRTUAL, (5, "KVM_STEAL_TIME"), KVM, &[one(0x4b56_4d03)]),
    both(PARAVIRTUAL, (6, "KVM_PV_EOI"), KVM, &[one(0x4b56_4d04)]),
    both(
        PARAVIRTUAL,
        (12, "KVM_POLL_CONTROL"),
        KVM,
        &[one(0x4b56_4d05)],
    ),
    both(
        PARAVIRTUAL,
        (14, "KVM_ASYNC_PF_INT"),
        KVM,
        &[0x4b56_4d06..=0x4b56_4d07],
    ),
    both(
        PARAVIRTUAL,
        (17, "KVM_MIGRATION_CONTROL"),
        KVM,
        &[one(0x4b56_4d08)],
    ),
    both(
        EXTENDED_ECX,
        (2, "SVM"),
        APM,
        &[one(0xc001_0114), one(0xc001_0117)],
    ),
    writes(
        EXTENDED_EDX,
        (11, "SYSCALL"),
        SDM,
        &[
            one(0xc000_0080),
            0xc000_0081..=0xc000_0082,
            one(0xc000_0084),
        ],
    ),
    both(EXTENDED_EDX, (20, "NX"), SDM, &[one(0xc000_0080)]),
    both(EXTENDED_EDX, (27, "RDTSCP"), SDM, &[one(0xc000_0103)]),
    both(
        EXTENDED_EDX,
        (29, "LM"),
        SDM,
        &[one(0xc000_0080), 0xc000_0100..=0xc000_0102],
    ),
    writes(EXTENDED_8_EBX, (12, "IBPB"), APM, &[one(0x49)]),
    both(EXTENDED_8_EBX, (14, "IBRS"), APM, &[one(0x48)]),
    both(EXTENDED_8_EBX, (15, "STIBP"), APM, &[one(0x48)]),
    both(EXTENDED_8_EBX, (24, "SSBD"), APM, &[one(0x48)]),
    both(EXTENDED_8_EBX, (25, "VIRT_SSBD"), APM, &[one(0xc001_011f)]),
];

#[cfg(test)]
mod tests {
    use super::super::by_index;
    use super::*;

    #[test]
    fn table_of_cpuid_features_is_sorted_and_names_known_registers() {
        let key = |feature: &Feature| {
            let bit = feature.bit;
            (bit.leaf, bit.subleaf, bit.register as u8, bit.bit)
        };
        assert!(FEATURES.is_sorted_by(|one, next| key(one) < key(next)));
        for feature in features() {
            assert!(feature.bit.bit < 32 && !feature.bit.feature.is_empty());
            let count = Access::ALL.map(|access| feature.msrs(access).count());
            assert_ne!(count, [0, 0], "{}", feature.bit);
            for index in Access::ALL.iter().flat_map(|&access| feature.msrs(access)) {
                assert!(by_index(index).is_some(), "{}: {index}", feature.bit);
            }
        }
    }

    #[test]
    fn cpuid_features_list_writes_of_command_registers_and_reads_of_report_registers() {
        let of = |name: &str, access| -> Vec<u32> {
            let feature = features().iter().find(|one| one.bit.feature == name);
            feature.unwrap().msrs(access).map(MsrIndex::get).collect()
        };
        assert_eq!(of("L1D_FLUSH", Access::Read), [0; 0]);
        assert_eq!(of("L1D_FLUSH", Access::Write), [0x10b]);
        assert_eq!(of("ARCH_CAPABILITIES", Access::Read), [0x10a]);
        assert_eq!(of("ARCH_CAPABILITIES", Access::Write), [0; 0]);
        assert_eq!(of("SEP", Access::Write), [0x174, 0x175, 0x176]);
        assert_eq!(of("MTRR", Access::Read)[0], 0xfe);
        assert_eq!(of("VMX", Access::Read).last(), Some(&0x48a));
    }
}
