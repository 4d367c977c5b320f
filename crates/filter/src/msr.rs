//! Which register, and which way: the words every other module speaks.

use core::fmt;
use core::ops::RangeInclusive;

/// The number a guest puts into ECX for RDMSR and WRMSR.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MsrIndex(u32);

/// The x2APIC registers, which no filter reaches on mainline (S3.1).
pub const X2APIC: RangeInclusive<MsrIndex> = MsrIndex(0x800)..=MsrIndex(0x8ff);

impl MsrIndex {
    /// The lowest index.
    pub const MIN: Self = Self(0);
    /// The highest index. It obeys only a filter's default: no range that matches anything
    /// contains it (S3.5).
    pub const MAX: Self = Self(u32::MAX);

    /// The register with this number.
    #[must_use]
    pub const fn new(index: u32) -> Self {
        Self(index)
    }

    /// The number itself.
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

/// `0x8b`, as the field writes it.
impl fmt::Display for MsrIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

/// One direction of access.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Access {
    /// RDMSR.
    Read = 0,
    /// WRMSR.
    Write = 1,
}

impl Access {
    /// Both directions, reads first.
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

/// The directions a range speaks of: the flags of `struct kvm_msr_filter_range`. "None" cannot be
/// said, as in the kernel (S2.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Accesses {
    /// `KVM_MSR_FILTER_READ`.
    Read,
    /// `KVM_MSR_FILTER_WRITE`.
    Write,
    /// Both flags: one bitmap for reads and writes.
    Both,
}

impl Accesses {
    /// Whether `access` is one of these.
    #[must_use]
    pub const fn contain(self, access: Access) -> bool {
        match self {
            Self::Both => true,
            Self::Read => matches!(access, Access::Read),
            Self::Write => matches!(access, Access::Write),
        }
    }

    /// The flag bits of the ABI: `READ` 1, `WRITE` 2.
    #[must_use]
    pub const fn bits(self) -> u32 {
        match self {
            Self::Read => 1,
            Self::Write => 2,
            Self::Both => 3,
        }
    }

    /// What the flag bits of the ABI mean, or `None` for no bit or an unknown one (S2.4).
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
