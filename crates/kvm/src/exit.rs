//! Why an access came to user space, and which of those reasons a VM asks for (S1.4).

use std::fmt;

/// Why KVM gave an access to user space: exactly one reason an exit (S5.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ExitReason {
    /// `KVM_MSR_EXIT_REASON_INVAL`: KVM knows the MSR and refuses this access to it.
    Inval,
    /// `KVM_MSR_EXIT_REASON_UNKNOWN`: KVM does not know the MSR.
    Unknown,
    /// `KVM_MSR_EXIT_REASON_FILTER`: the filter refuses the access.
    Filter,
}

impl ExitReason {
    /// All three, lowest bit first.
    pub const ALL: [Self; 3] = [Self::Inval, Self::Unknown, Self::Filter];

    /// Its bit: 1, 2 or 4.
    #[must_use]
    pub const fn bit(self) -> u32 {
        match self {
            Self::Inval => 1,
            Self::Unknown => 2,
            Self::Filter => 4,
        }
    }
}

impl fmt::Display for ExitReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Inval => "invalid",
            Self::Unknown => "unknown",
            Self::Filter => "filter",
        })
    }
}

/// The reasons for which a VM wants exits: `args[0]` of `KVM_CAP_X86_USER_SPACE_MSR` (S1.9). Any
/// bits, because user space can pass any.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct ReasonMask(u32);

impl ReasonMask {
    /// No exits: every refusal is a #GP.
    pub const NONE: Self = Self(0);
    /// Every reason that mainline knows.
    pub const ALL: Self = Self(7);
    /// Only what the filter refuses.
    pub const FILTER: Self = Self(4);

    /// These bits.
    #[must_use]
    pub const fn new(bits: u32) -> Self {
        Self(bits)
    }

    /// The bits.
    #[must_use]
    pub const fn bits(self) -> u32 {
        self.0
    }

    /// Whether exits for this reason are asked for.
    #[must_use]
    pub const fn contains(self, reason: ExitReason) -> bool {
        self.0 & reason.bit() != 0
    }

    /// What either asks for.
    #[must_use]
    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// The reason an exit gave, as the kernel wrote it: one bit (S5.2), unless the kernel is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RawReason(u32);

impl RawReason {
    /// These bits.
    #[must_use]
    pub const fn new(bits: u32) -> Self {
        Self(bits)
    }

    /// The bits.
    #[must_use]
    pub const fn get(self) -> u32 {
        self.0
    }

    /// The reason they stand for, or `None` if they are none or several, or unknown.
    #[must_use]
    pub fn known(self) -> Option<ExitReason> {
        ExitReason::ALL
            .into_iter()
            .find(|reason| reason.bit() == self.0)
    }
}

impl From<ExitReason> for RawReason {
    fn from(reason: ExitReason) -> Self {
        Self(reason.bit())
    }
}
