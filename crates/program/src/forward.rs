//! Which registers a gate may read and write on a guest's behalf.
//!
//! `KVM_GET_MSRS` and `KVM_SET_MSRS` skip what a guest's own access is checked for, so forwarding
//! is sound for the registers of this list only: those that KVM keeps and hands out in one way, for
//! the host as for the guest. Not in it, and not to be added:
//!
//! - what the guest's CPUID has to allow, and the host need not have: `IA32_EFER`,
//!   `IA32_SPEC_CTRL`, `IA32_PRED_CMD`, `IA32_FLUSH_CMD` (a real WRMSR on the host), `IA32_TSC_AUX`,
//!   `IA32_DEBUGCTL`, `IA32_XFD`, the PMU and more;
//! - what only the host may write: `IA32_ARCH_CAPABILITIES`, `MSR_PLATFORM_INFO`, the microcode's
//!   revision, machine-check banks, the VMX capabilities and more;
//! - what does something else for the host: `IA32_TIME_STAMP_COUNTER`, `IA32_APIC_BASE`,
//!   `IA32_MISC_ENABLE`, KVM's and Hyper-V's own.
//!
//! Never forward while the vCPU runs a nested guest: the host's access is to the wrong one's state.

use core::fmt;

use msrgate_filter::MsrIndex;

/// How accesses to a register may be forwarded.
#[derive(Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Forward {
    /// Reads, by `KVM_GET_MSRS`.
    pub read: Forwarding,
    /// Writes, by `KVM_SET_MSRS`. A count of 0 that it returns is the #GP of the guest.
    pub write: Forwarding,
    /// What the guest's CPUID has to have, all of it; without, the guest would fault where the
    /// host does not.
    pub needs_cpuid: &'static [CpuidBit],
    /// Why this is sound.
    pub why: &'static str,
}

/// Which accesses of one direction may be forwarded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Forwarding {
    /// All.
    Always,
    /// All, and KVM refuses an address that is not canonical.
    Canonical,
    /// Writes of values that set no other bits. Any other value is the guest's #GP.
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

/// One bit of what CPUID returns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct CpuidBit {
    /// What goes into EAX.
    pub leaf: u32,
    /// What goes into ECX; 0 for leaves that do not look at it.
    pub subleaf: u32,
    /// Where the bit comes out.
    pub register: CpuidRegister,
    /// Its number, at most 31.
    pub bit: u8,
    /// The feature, as the SDM calls it.
    pub feature: &'static str,
}

/// `LM (CPUID 0x80000001 EDX bit 29)`, `XFD (CPUID 0xd.1 EAX bit 4)`.
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

/// A register that CPUID fills.
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

/// How accesses to a register may be forwarded, where that is sound: for most it is not.
#[must_use]
pub fn forward(index: MsrIndex) -> Option<&'static Forward> {
    row(index).map(Row::forward)
}

/// How many registers may be forwarded.
pub(crate) const ROWS: usize = 10;

/// A register's place among those.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Row(usize);

impl Row {
    /// The place, counted from 0.
    pub(crate) const fn number(self) -> usize {
        self.0
    }

    /// How accesses to the register may be forwarded.
    pub(crate) fn forward(self) -> &'static Forward {
        &FORWARDS[self.0].1
    }
}

/// The place of a register, if it is one of those.
#[inline]
pub(crate) fn row(index: MsrIndex) -> Option<Row> {
    let row = FORWARDS.binary_search_by_key(&index, |(row, _)| *row);
    row.ok().map(Row)
}

/// All of them, by index.
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

/// The bits of registers whose upper half is reserved. The host's write keeps what it sets there
/// (measured), so a write that sets any is not forwarded.
const LOW_HALF: u64 = 0xffff_ffff;

/// A register that every processor with long mode has.
const fn long_mode(write: Forwarding, why: &'static str) -> Forward {
    Forward {
        read: Forwarding::Always,
        write,
        needs_cpuid: &[LONG_MODE],
        why,
    }
}

/// A register that every processor with SYSENTER has.
const fn sysenter(write: Forwarding, why: &'static str) -> Forward {
    Forward {
        read: Forwarding::Always,
        write,
        needs_cpuid: &[SYSENTER],
        why,
    }
}

const LOW: &str = "kept as written; the upper half is reserved, but not for the host's write";
const MADE: &str = "KVM makes the address canonical, on AMD 32 bits, whoever writes it";
const CHECKED: &str = "KVM refuses an address that is not canonical, whoever writes it";
const PLAIN: &str = "kept as written; every value is legal";

/// By index.
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
    fn rows_are_in_order_and_each_once() {
        assert!(FORWARDS.is_sorted_by(|(one, _), (next, _)| one < next));
    }

    /// A register that a guest may lack is forwarded only with the CPUID bit it has it by.
    #[test]
    fn each_needs_a_cpuid_bit_and_says_why() {
        for (index, forward) in &FORWARDS {
            assert!(!forward.needs_cpuid.is_empty(), "{index}");
            assert!(!forward.why.is_empty(), "{index}");
            assert_eq!(forward.read, Forwarding::Always, "{index}");
        }
        assert_eq!(LONG_MODE.to_string(), "LM (CPUID 0x80000001 EDX bit 29)");
        assert_eq!(SYSENTER.to_string(), "SEP (CPUID 0x1 EDX bit 11)");
    }
}
