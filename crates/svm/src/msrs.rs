//! The MSRs that the guest never gets, whatever the policy says, and those whose guest's value lies in the
//! VMCB.

use core::ops::RangeInclusive;

use msrgate_filter::intercept::PassThrough;
use msrgate_filter::{Access, MsrIndex};

/// EFER, whose guest's value lies in the VMCB, without the bit SVME.
pub const EFER: u32 = 0xc000_0080;
/// PAT, whose guest's value lies in the VMCB under nested paging (APM volume 2, 15.25.4).
pub const PAT: u32 = 0x277;
/// `APIC_BASE`: the address and the mode of the APIC, whose page the hypervisor guards.
pub const APIC_BASE: u32 = 0x1b;

/// An access that the hypervisor refuses, for a reason of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kept {
    /// Reads and writes are refused: the register belongs to SVM.
    Both,
    /// Writes are refused. They would change, without the hypervisor, which addresses are memory or where the code of
    /// system management mode lies, or would load microcode.
    Writes,
}

/// The registers of which the guest never gets an access, with the accesses (APM volume 2, 15.30, 7.9, 10.2;
/// BIOS and kernel developer's guides of AMD for the others). A policy can refuse more, but allow none of
/// these.
pub const KEPT: [(RangeInclusive<u32>, Kept, &str); 8] = [
    (
        0x79..=0x79,
        Kept::Writes,
        "Intel's register that loads microcode",
    ),
    (0xc001_0010..=0xc001_0010, Kept::Writes, "SYSCFG"),
    (
        0xc001_0016..=0xc001_001d,
        Kept::Writes,
        "IORRs, TOP_MEM and TOP_MEM2",
    ),
    (0xc001_0020..=0xc001_0020, Kept::Writes, "PATCH_LOADER"),
    (
        0xc001_0111..=0xc001_0113,
        Kept::Both,
        "SMM_BASE, SMM_ADDR and SMM_MASK",
    ),
    (0xc001_0114..=0xc001_0115, Kept::Both, "VM_CR and IGNNE"),
    (
        0xc001_0116..=0xc001_0119,
        Kept::Both,
        "SMM_CTL, VM_HSAVE_PA, SVM_KEY and SMM_KEY",
    ),
    (
        0xc001_011b..=0xc001_011b,
        Kept::Both,
        "the doorbell of AVIC",
    ),
];

/// Returns true if the hypervisor refuses this access, whatever the policy says.
#[must_use]
pub fn is_kept(index: MsrIndex, access: Access) -> bool {
    KEPT.iter().any(|(range, kept, _)| {
        range.contains(&index.get()) && (*kept == Kept::Both || access == Access::Write)
    })
}

/// The registers that the hypervisor knows: those of AMD's processors (APM volume 2, appendix A, and the
/// processor programming references), sorted. An access to any other register gets the answer of the policy's
/// `unknown`, whatever the processor would say: QEMU's emulator answers reads of registers that no processor
/// has.
const KNOWN: [RangeInclusive<u32>; 66] = [
    0x10..=0x10,   // TSC
    0x1b..=0x1b,   // APIC_BASE
    0x2a..=0x2a,   // EBL_CR_POWERON
    0x48..=0x49,   // SPEC_CTRL, PRED_CMD
    0x8b..=0x8b,   // PATCH_LEVEL
    0xe7..=0xe8,   // MPERF, APERF
    0xfe..=0xfe,   // MTRRcap
    0x10b..=0x10b, // FLUSH_CMD
    0x174..=0x176, // SYSENTER_CS, ESP, EIP
    0x179..=0x17b, // MCG_CAP, MCG_STATUS, MCG_CTL
    0x1d9..=0x1d9, // DEBUGCTL
    0x1db..=0x1de, // the last branch and the last exception
    0x200..=0x20f, // MTRRs of variable size
    0x250..=0x250, // MTRRs of fixed size
    0x258..=0x259,
    0x268..=0x26f,
    0x277..=0x277, // PAT
    0x2ff..=0x2ff, // the default type of the MTRRs
    0x400..=0x47f, // banks of machine-check registers
    0x6a0..=0x6a0, // shadow stacks
    0x6a2..=0x6a2,
    0x6a4..=0x6a8,
    0x802..=0x83f,             // x2APIC
    0xc80..=0xc91,             // quality of service
    0xda0..=0xda0,             // XSS
    0xc000_0080..=0xc000_0084, // EFER, STAR, LSTAR, CSTAR, FMASK
    0xc000_00e7..=0xc000_00e9, // MPERF, APERF and retired instructions, to read only
    0xc000_0100..=0xc000_0104, // FS_BASE, GS_BASE, KERNEL_GS_BASE, TSC_AUX, TSC_RATIO
    0xc000_0108..=0xc000_0108, // prefetch control
    0xc000_010e..=0xc000_010f, // the stack of last branches
    0xc000_0200..=0xc000_021f, // bandwidth limits
    0xc000_0300..=0xc000_0303, // global control of performance counters
    0xc000_0400..=0xc000_040a, // masks of machine checks
    0xc000_0410..=0xc000_0410, // interrupts of machine checks
    0xc000_0500..=0xc000_0502, // work load classification
    0xc000_2000..=0xc000_2fff, // banks of machine-check registers, scalable
    0xc001_0000..=0xc001_0007, // performance counters
    0xc001_0010..=0xc001_0010, // SYSCFG
    0xc001_0015..=0xc001_001a, // HWCR, IORRs, TOP_MEM
    0xc001_001d..=0xc001_001d, // TOP_MEM2
    0xc001_001f..=0xc001_0020, // NB_CFG, PATCH_LOADER
    0xc001_0022..=0xc001_0022, // redirection of machine checks
    0xc001_0030..=0xc001_0035, // the processor's name
    0xc001_003e..=0xc001_003f, // thermal control
    0xc001_0044..=0xc001_004a, // masks of machine checks
    0xc001_0050..=0xc001_0058, // traps of system management mode, MMIO configuration
    0xc001_0061..=0xc001_006b, // power states
    0xc001_0070..=0xc001_0074, // voltages and timers
    0xc001_00e6..=0xc001_00e6,
    0xc001_0111..=0xc001_011b, // system management mode, SVM
    0xc001_0130..=0xc001_0131, // SEV
    0xc001_0140..=0xc001_0141, // the operating system's visible workarounds
    0xc001_0200..=0xc001_020b, // performance counters of the core
    0xc001_0230..=0xc001_023b, // performance counters of the last cache
    0xc001_0240..=0xc001_024f, // performance counters of the data fabric
    0xc001_0290..=0xc001_029b, // energy
    0xc001_02b0..=0xc001_02b4, // performance by CPPC
    0xc001_02f0..=0xc001_02f1, // the processor's serial number
    0xc001_0300..=0xc001_031f, // the stack of last branches
    0xc001_0800..=0xc001_0807, // performance counters of the memory controller
    0xc001_1002..=0xc001_1005, // CPUID's features
    0xc001_100c..=0xc001_100c,
    0xc001_1019..=0xc001_1023, // address masks of breakpoints, configuration of the load and store unit
    0xc001_1027..=0xc001_102f, // configuration of the core
    0xc001_1030..=0xc001_103d, // instruction-based sampling
    0xc001_1095..=0xc001_1095,
];

/// Returns true if the hypervisor knows the register.
#[must_use]
pub fn is_known(index: MsrIndex) -> bool {
    let behind = KNOWN.partition_point(|range| *range.end() < index.get());
    KNOWN
        .get(behind)
        .is_some_and(|range| range.contains(&index.get()))
}

/// Returns [`PassThrough::Wanted`] if the register is the guest's all the time, so that an access to it need
/// not exit.
#[must_use]
pub fn wants(index: MsrIndex, access: Access) -> PassThrough {
    let is_switched = matches!(index.get(), EFER | PAT | APIC_BASE);
    if is_switched || is_kept(index, access) || !is_known(index) {
        PassThrough::Unwanted
    } else {
        PassThrough::Wanted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registers_of_svm_are_refused_in_both_directions() {
        for index in [
            0xc001_0114,
            0xc001_0117,
            0xc001_0119,
            0xc001_0111,
            0xc001_011b,
        ] {
            for access in [Access::Read, Access::Write] {
                assert!(is_kept(MsrIndex::new(index), access), "{index:#x}");
            }
        }
    }

    #[test]
    fn registers_that_move_memory_can_be_read_but_not_written() {
        for index in [
            0xc001_0010,
            0xc001_0016,
            0xc001_001a,
            0xc001_001d,
            0xc001_0020,
        ] {
            assert!(!is_kept(MsrIndex::new(index), Access::Read), "{index:#x}");
            assert!(is_kept(MsrIndex::new(index), Access::Write), "{index:#x}");
        }
        assert!(!is_kept(MsrIndex::new(0xc001_0015), Access::Write));
        assert!(!is_kept(MsrIndex::new(0xc001_001f), Access::Write));
    }

    #[test]
    fn known_registers_are_sorted() {
        assert!(KNOWN.is_sorted_by(|one, next| one.end() < next.start()));
        for (index, is) in [
            (0x10, true),
            (0x11, false),
            (0x47f, true),
            (0x480, false),
            (0, false),
        ] {
            assert_eq!(is_known(MsrIndex::new(index)), is, "{index:#x}");
        }
        assert!(!is_known(MsrIndex::MAX));
    }

    #[test]
    fn registers_in_vmcb_and_kept_registers_are_not_passed_through() {
        for index in [EFER, PAT, APIC_BASE, 0xc001_0117] {
            assert_eq!(
                wants(MsrIndex::new(index), Access::Write),
                PassThrough::Unwanted
            );
        }
        assert_eq!(
            wants(MsrIndex::new(0xc001_0010), Access::Read),
            PassThrough::Wanted
        );
        assert_eq!(
            wants(MsrIndex::new(0xc000_0082), Access::Write),
            PassThrough::Wanted
        );
    }
}
