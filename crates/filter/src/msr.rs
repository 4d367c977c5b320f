//! MSR numbers and directions of access, which every other module uses.

use core::fmt;
use core::ops::RangeInclusive;

/// The number of an MSR, which a guest puts into ECX for RDMSR and WRMSR.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MsrIndex(u32);

/// The x2APIC registers, which no filter covers on mainline (S3.1).
pub const X2APIC: RangeInclusive<MsrIndex> = MsrIndex(0x800)..=MsrIndex(0x8ff);

impl MsrIndex {
    /// The index of the lowest MSR.
    pub const MIN: Self = Self(0);
    /// The index of the highest MSR. A range that contains this MSR would end at 2^32, and such a range
    /// matches no access (S3.5). So the filter's default action always decides accesses to this MSR.
    pub const MAX: Self = Self(u32::MAX);

    /// Creates the index of the MSR with this number.
    #[must_use]
    pub const fn new(index: u32) -> Self {
        Self(index)
    }

    /// The index as a number.
    #[must_use]
    pub const fn get(self) -> u32 {
        self.0
    }
}

impl fmt::Debug for MsrIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Writes the index in hexadecimal: `0x8b`.
impl fmt::Display for MsrIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

/// The direction of one access.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Access {
    /// A read, by RDMSR.
    Read = 0,
    /// A write, by WRMSR.
    Write = 1,
}

impl Access {
    /// The two directions of access, reads first.
    pub const ALL: [Self; 2] = [Self::Read, Self::Write];
}

impl fmt::Display for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Read => "read",
            Self::Write => "write",
        })
    }
}

/// The directions that a range covers: the flags of `struct kvm_msr_filter_range`. A range covers
/// at least one direction, because the kernel refuses any other range (S2.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Accesses {
    /// Reads only: the flag `KVM_MSR_FILTER_READ`.
    Read,
    /// Writes only: the flag `KVM_MSR_FILTER_WRITE`.
    Write,
    /// Reads and writes, by the same bitmap: both flags.
    Both,
}

impl Accesses {
    /// Returns true if `access` is one of these directions.
    #[must_use]
    pub const fn contain(self, access: Access) -> bool {
        match self {
            Self::Both => true,
            Self::Read => matches!(access, Access::Read),
            Self::Write => matches!(access, Access::Write),
        }
    }

    /// The flag bits that stand for these directions in a range's `flags`: 1 for reads, 2 for writes.
    #[must_use]
    pub const fn bits(self) -> u32 {
        match self {
            Self::Read => 1,
            Self::Write => 2,
            Self::Both => 3,
        }
    }

    /// Returns the directions for the flag bits of the ABI, or `None` for 0 and for unknown bits
    /// (S2.4).
    #[must_use]
    pub const fn from_bits(bits: u32) -> Option<Self> {
        match bits {
            1 => Some(Self::Read),
            2 => Some(Self::Write),
            3 => Some(Self::Both),
            _ => None,
        }
    }
}

impl fmt::Display for Accesses {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Read => "r",
            Self::Write => "w",
            Self::Both => "rw",
        })
    }
}
