//! The two behaviours this crate knows, and the table of everything in which they differ.

use crate::msr::{MsrIndex, X2APIC};

/// Whose behaviour.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Revision {
    /// What Linux runs today.
    #[default]
    Mainline,
    /// The patch "[PATCH v6 6/7] KVM: x86: Introduce MSR filtering" of 2 September 2020 as posted.
    V6,
}

impl Revision {
    /// Default deny with nothing but empty ranges is EINVAL (S2.3).
    pub(crate) const fn refuses_deny_without_ranges(self) -> bool {
        matches!(self, Self::Mainline)
    }

    /// Without ranges everything is allowed, whatever the default (S2.3).
    pub(crate) const fn ignores_default_without_ranges(self) -> bool {
        matches!(self, Self::V6)
    }

    /// No filter reaches this MSR, whatever it says (S3.1).
    pub(crate) fn exempts(self, index: MsrIndex) -> bool {
        match self {
            Self::Mainline => X2APIC.contains(&index),
            Self::V6 => false,
        }
    }
}
