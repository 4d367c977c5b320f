//! The registers that a gate may read and write on behalf of a guest.
//!
//! `KVM_GET_MSRS` and `KVM_SET_MSRS` skip checks that KVM makes for a guest's own access.
//! Forwarding is therefore sound only for the registers of this list, which KVM stores and returns
//! for the host in the same way as for the guest. The following registers are not in the list and
//! must not be added to it:
//!
//! - registers that a guest can use only if its CPUID has a certain bit, while the host can always
//!   use them: `IA32_EFER`, `IA32_SPEC_CTRL`, `IA32_PRED_CMD`, `IA32_FLUSH_CMD` (a real WRMSR on
//!   the host), `IA32_TSC_AUX`, `IA32_DEBUGCTL`, `IA32_XFD`, the PMU and more;
//! - registers that only the host may write: `IA32_ARCH_CAPABILITIES`, `MSR_PLATFORM_INFO`, the
//!   microcode's revision, machine-check banks, the VMX capabilities and more;
//! - registers for which the host's access does something else: `IA32_TIME_STAMP_COUNTER`,
//!   `IA32_APIC_BASE`, `IA32_MISC_ENABLE`, the registers of KVM and Hyper-V.
//!
//! A gate must not forward while the vCPU runs a nested guest, because the host's access would use
//! the state of the wrong guest.

use core::fmt;

use msrgate_filter::MsrIndex;

/// The conditions under which the gate may forward a guest's accesses to one register that KVM keeps.
#[derive(Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Forward {
    /// The condition for forwarding a read of the register, with `KVM_GET_MSRS`.
    pub read: Forwarding,
    /// The condition for forwarding a write to the register, with `KVM_SET_MSRS`. If KVM refuses the
    /// written value, that call returns the count 0, and the guest gets #GP.
    pub write: Forwarding,
    /// The CPUID bits that the guest must have. If the guest lacks one of these bits, the guest's own access
    /// would fault, but the gate's access on behalf of the guest would succeed.
    pub needs_cpuid: &'static [CpuidBit],
    /// The reason why forwarding accesses to this register is sound, in words.
    pub why: &'static str,
}

/// The condition under which the gate may forward reads of a register, or writes to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Forwarding {
    /// The gate may forward every access.
    Always,
    /// The gate may forward every access. The register holds an address, and KVM itself refuses to
    /// write an address that is not canonical.
    Canonical,
    /// The gate may forward a write that sets only these bits. If a write sets any other bit, the guest
    /// gets #GP.
    Sets(u64),
}

impl Forwarding {
    /// Returns true if a write of `value` may be forwarded.
    #[must_use]
    pub const fn permits(self, value: u64) -> bool {
        match self {
            Self::Always | Self::Canonical => true,
            Self::Sets(bits) => value & !bits == 0,
        }
    }
}

/// One bit that the CPUID instruction returns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct CpuidBit {
    /// The leaf that contains the bit: the value of EAX for the CPUID instruction.
    pub leaf: u32,
    /// The subleaf that contains the bit: the value of ECX for the CPUID instruction; 0 for leaves
    /// without subleaves.
    pub subleaf: u32,
    /// The register in which CPUID returns the bit.
    pub register: CpuidRegister,
    /// The number of the bit, at most 31.
    pub bit: u8,
    /// The name that the SDM has for the feature that the bit announces.
    pub feature: &'static str,
}

/// Writes the bit as `LM (CPUID 0x80000001 EDX bit 29)` or `XFD (CPUID 0xd.1 EAX bit 4)`.
impl fmt::Display for CpuidBit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            leaf,
            subleaf,
            register,
            bit,
            feature,
        } = self;
        write!(f, "{feature} (CPUID {leaf:#x}")?;
        if *subleaf != 0 {
            write!(f, ".{subleaf}")?;
        }
        write!(f, " {register} bit {bit})")
    }
}

/// A register in which CPUID returns bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "the names say it")]
pub enum CpuidRegister {
    Eax,
    Ebx,
    Ecx,
    Edx,
}

impl fmt::Display for CpuidRegister {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Eax => "EAX",
            Self::Ebx => "EBX",
            Self::Ecx => "ECX",
            Self::Edx => "EDX",
        })
    }
}

/// Returns the conditions under which accesses to a register may be forwarded. `None`, as for most
/// registers, means that forwarding is not known to be sound.
#[must_use]
pub fn forward(index: MsrIndex) -> Option<&'static Forward> {
    row(index).map(Row::forward)
}

/// The number of registers in the forward list.
pub(crate) const ROWS: usize = 10;

/// The position of a register in the forward list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Row(usize);

impl Row {
    /// The position in the forward list, counted from 0.
    pub(crate) const fn number(self) -> usize {
        self.0
    }

    /// Returns the conditions under which accesses to the register may be forwarded.
    pub(crate) fn forward(self) -> &'static Forward {
        &FORWARDS[self.0].1
    }
}

/// Returns the position of a register in the forward list, or `None` if the forward list does not
/// contain the register.
#[inline]
pub(crate) fn row(index: MsrIndex) -> Option<Row> {
    let row = FORWARDS.binary_search_by_key(&index, |(row, _)| *row);
    row.ok().map(Row)
}

/// Returns the conditions of all registers in the forward list, in the order of the list.
pub(crate) fn rows() -> [&'static Forward; ROWS] {
    core::array::from_fn(|row| &FORWARDS[row].1)
}

const LONG_MODE: CpuidBit = CpuidBit {
    leaf: 0x8000_0001,
    subleaf: 0,
    register: CpuidRegister::Edx,
    bit: 29,
    feature: "LM",
};

const SYSENTER: CpuidBit = CpuidBit {
    leaf: 1,
    subleaf: 0,
    register: CpuidRegister::Edx,
    bit: 11,
    feature: "SEP",
};

/// The bits that may be set in a register whose upper half is reserved: the lower half. A guest's write
/// that sets a bit of the upper half would fault, but a write by the host stores the bit (measured). So
/// the gate does not forward such a write.
const LOW_HALF: u64 = 0xffff_ffff;

/// Returns the conditions for a register that every processor with long mode has.
const fn long_mode(write: Forwarding, why: &'static str) -> Forward {
    Forward {
        read: Forwarding::Always,
        write,
        needs_cpuid: &[LONG_MODE],
        why,
    }
}

/// Returns the conditions for a register that every processor with SYSENTER has.
const fn sysenter(write: Forwarding, why: &'static str) -> Forward {
    Forward {
        read: Forwarding::Always,
        write,
        needs_cpuid: &[SYSENTER],
        why,
    }
}

const LOW: &str = "the register keeps the written value; the upper half is reserved for guests, but not for writes by the host";
const MADE: &str = "KVM makes the written address canonical (on AMD: cuts it to 32 bits), for writes by guest and host";
const CHECKED: &str = "KVM refuses an address that is not canonical, for writes by guest and host";
const PLAIN: &str = "the register keeps the written value, and every value is legal";

/// The forward list, sorted by index.
static FORWARDS: [(MsrIndex, Forward); ROWS] = [
    of(0x174, sysenter(Forwarding::Sets(LOW_HALF), LOW)),
    of(0x175, sysenter(Forwarding::Always, MADE)),
    of(0x176, sysenter(Forwarding::Always, MADE)),
    of(0xc000_0081, long_mode(Forwarding::Always, PLAIN)),
    of(0xc000_0082, long_mode(Forwarding::Canonical, CHECKED)),
    of(0xc000_0083, long_mode(Forwarding::Canonical, CHECKED)),
    of(0xc000_0084, long_mode(Forwarding::Sets(LOW_HALF), LOW)),
    of(0xc000_0100, long_mode(Forwarding::Canonical, CHECKED)),
    of(0xc000_0101, long_mode(Forwarding::Canonical, CHECKED)),
    of(0xc000_0102, long_mode(Forwarding::Canonical, CHECKED)),
];

const fn of(index: u32, forward: Forward) -> (MsrIndex, Forward) {
    (MsrIndex::new(index), forward)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forward_list_is_sorted_and_has_each_register_once() {
        assert!(FORWARDS.is_sorted_by(|(one, _), (next, _)| one < next));
    }

    /// Each row of the forward list names the CPUID bits that the guest needs for the register, and the
    /// reason why forwarding is sound. Each row lets every read be forwarded.
    #[test]
    fn each_register_of_forward_list_has_cpuid_bits_and_a_reason() {
        for (index, forward) in &FORWARDS {
            assert!(!forward.needs_cpuid.is_empty(), "{index}");
            assert!(!forward.why.is_empty(), "{index}");
            assert_eq!(forward.read, Forwarding::Always, "{index}");
        }
        assert_eq!(LONG_MODE.to_string(), "LM (CPUID 0x80000001 EDX bit 29)");
        assert_eq!(SYSENTER.to_string(), "SEP (CPUID 0x1 EDX bit 11)");
    }
}
