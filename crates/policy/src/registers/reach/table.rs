//! The tables of gaps, written by hand from the kernel's sources, 5.10 to 7.3, and the manuals of
//! Intel and AMD. The tables do not say what a given host does: that is measured on the host.

use std::ops::RangeInclusive;

use msrgate_filter::{Accesses, X2APIC};

use super::{Exempt, Gap, GapKind, Kernel, Kernels, Reach, Vendor};

const fn access(name: &'static str, why: &'static str) -> Gap {
    Gap {
        name,
        kind: GapKind::Access,
        why,
        on: Vendor::Any,
        needs: None,
        kernels: Kernels::ALL,
    }
}

const fn change(name: &'static str, why: &'static str) -> Gap {
    Gap {
        kind: GapKind::Change,
        ..access(name, why)
    }
}

const fn usage(name: &'static str, why: &'static str) -> Gap {
    Gap {
        kind: GapKind::Use,
        ..access(name, why)
    }
}

const fn one(index: u32) -> RangeInclusive<u32> {
    index..=index
}

const X2APIC_EXEMPT: Gap = access(
    "x2apic",
    "KVM allows the x2APIC registers before it looks at any filter (S3.1)",
);

const ICR_FASTPATH: Gap = access(
    "x2apic-icr-fastpath",
    "a write may send its interrupt on an exit path that asks no filter",
);

const TSC_DEADLINE_FASTPATH: Gap = access(
    "tsc-deadline-fastpath",
    "a write may set the timer on an exit path that asks no filter",
);

/// Gaps of access to certain registers.
pub(super) static ACCESS: [Gap; 3] = [X2APIC_EXEMPT, ICR_FASTPATH, TSC_DEADLINE_FASTPATH];

/// Accesses about which KVM does not always ask a filter. If several rows have an access, the first
/// row counts.
pub(super) static EXEMPT: [Exempt; 3] = [
    Exempt {
        indices: one(0x830),
        accesses: Accesses::Write,
        reach: Reach::Not(&[X2APIC_EXEMPT, ICR_FASTPATH]),
    },
    Exempt {
        indices: X2APIC.start().get()..=X2APIC.end().get(),
        accesses: Accesses::Both,
        reach: Reach::Not(&[X2APIC_EXEMPT]),
    },
    Exempt {
        indices: one(0x6e0),
        accesses: Accesses::Write,
        reach: Reach::Partly(&[TSC_DEADLINE_FASTPATH]),
    },
];

/// Gaps of access that every register has, but only in some VMs.
pub(super) static VM: [Gap; 2] = [
    Gap {
        name: "nested-msr-lists",
        kind: GapKind::Access,
        why: "a nested VM entry or exit may load and store its MSR lists without asking the filter, \
              in a VM whose CPUID has VMX",
        on: Vendor::Intel,
        needs: Some("VMX"),
        kernels: Kernels::to(Kernel {
            major: 6,
            minor: 11,
        }),
    },
    access(
        "confidential-guest",
        "code outside of KVM handles some MSRs of a SEV-ES, SEV-SNP, TDX or pKVM guest",
    ),
];

/// Gaps of use and of change, each with the registers that the operation reads, writes or obeys.
pub(super) static USES: [(Gap, &[RangeInclusive<u32>]); 17] = [
    (
        usage("syscall", "SYSCALL and SYSRET use the register"),
        &[0xc000_0081..=0xc000_0084],
    ),
    (
        usage(
            "sysenter",
            "SYSENTER uses the register, and SYSEXIT uses IA32_SYSENTER_CS",
        ),
        &[0x174..=0x176],
    ),
    (
        change(
            "segment-base",
            "RDFSBASE and RDGSBASE read the register; WRFSBASE, WRGSBASE and loads of FS or GS change it",
        ),
        &[0xc000_0100..=0xc000_0101],
    ),
    (
        change(
            "swapgs",
            "SWAPGS exchanges the base of GS and IA32_KERNEL_GS_BASE",
        ),
        &[0xc000_0101..=0xc000_0102],
    ),
    (
        usage("rdtsc", "RDTSC and RDTSCP read the register"),
        &[one(0x10)],
    ),
    (
        usage(
            "tsc-adjust",
            "a write of IA32_TIME_STAMP_COUNTER changes IA32_TSC_ADJUST by the same amount, and vice versa",
        ),
        &[one(0x10), one(0x3b)],
    ),
    (
        usage("rdtscp", "RDTSCP and RDPID read the register"),
        &[one(0xc000_0103)],
    ),
    (usage("rdpmc", "RDPMC reads the register"), COUNTERS),
    (
        usage("xsaves", "XSAVES and XRSTORS use the register"),
        &[one(0xda0)],
    ),
    (
        usage(
            "xrstors",
            "XSAVES stores the register and XRSTORS loads it, if IA32_XSS has the bit of its component",
        ),
        SUPERVISOR_STATE,
    ),
    (
        usage(
            "xfd",
            "an instruction that needs a state component disabled in IA32_XFD faults and sets IA32_XFD_ERR",
        ),
        &[0x1c4..=0x1c5],
    ),
    (
        usage(
            "shadow-stack",
            "calls, interrupts and returns between privilege levels use the register",
        ),
        &[0x6a4..=0x6a8],
    ),
    (
        usage(
            "paging",
            "switching paging on or off in CR0 changes the LMA bit of the register",
        ),
        &[one(0xc000_0080)],
    ),
    (
        usage(
            "debug-exception",
            "a debug exception clears the LBR and BTF bits of the register",
        ),
        &[one(0x1d9)],
    ),
    (
        Gap {
            on: Vendor::Amd,
            needs: Some("SVM"),
            ..change(
                "vmload",
                "VMLOAD loads the register and VMSAVE stores it, in a VM whose CPUID has SVM",
            )
        },
        &[
            0x174..=0x176,
            0xc000_0081..=0xc000_0084,
            0xc000_0100..=0xc000_0102,
        ],
    ),
    (
        Gap {
            on: Vendor::Intel,
            needs: Some("VMX"),
            ..change(
                "vmcs",
                "a nested VM entry or exit loads the register from a VMCS, in a VM whose CPUID has VMX",
            )
        },
        &[0x174..=0x176, 0xc000_0100..=0xc000_0101],
    ),
    (
        usage(
            "nested-state",
            "a nested VM entry or exit loads the register from a control structure",
        ),
        CONTROL_STRUCTURES,
    ),
];

/// Performance counters that RDPMC reads.
const COUNTERS: &[RangeInclusive<u32>] = &[
    0xc1..=0xc8,
    0x309..=0x30c,
    one(0x329),
    0x4c1..=0x4c8,
    one(0x1900),
    one(0x1980),
    0xc001_0004..=0xc001_0007,
    one(0xc001_0201),
    one(0xc001_0203),
    one(0xc001_0205),
    one(0xc001_0207),
    one(0xc001_0209),
    one(0xc001_020b),
];

/// The supervisor components of XSAVES: trace, PASID, shadow stacks, hardware duty cycling, branch
/// records, hardware P-states. So far, KVM offers only the shadow stacks.
const SUPERVISOR_STATE: &[RangeInclusive<u32>] = &[
    0x560..=0x561,
    0x570..=0x572,
    0x580..=0x587,
    one(0x6a0),
    0x6a4..=0x6a7,
    one(0x774),
    one(0xd93),
    one(0xdb1),
    0x1200..=0x121f,
    0x14ce..=0x14cf,
    0x1500..=0x151f,
    0x1600..=0x161f,
];

/// Registers that KVM loads from the guest hypervisor's VMCS, or from its VMCB at VMRUN. Registers
/// that a policy may pin are left out.
const CONTROL_STRUCTURES: &[RangeInclusive<u32>] = &[
    one(0x1d9),
    one(0x277),
    one(0x38f),
    one(0x570),
    one(0x6a2),
    one(0x6a8),
    one(0xd90),
    one(0xc000_0080),
];
