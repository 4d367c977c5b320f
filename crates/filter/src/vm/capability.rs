//! The capabilities that user space may query and enable (S1).

use crate::revision::Revision;

/// A capability of KVM, by its number `KVM_CAP_*`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Capability(u32);

impl Capability {
    /// Creates the capability with this number, known or not.
    #[must_use]
    pub const fn new(number: u32) -> Self {
        Self(number)
    }

    /// `KVM_CAP_X86_USER_SPACE_MSR`: accesses that fail can exit to user space in place of #GP
    /// (S1.1).
    #[must_use]
    pub const fn user_space_msr(revision: Revision) -> Self {
        Self(revision.user_space_msr())
    }

    /// `KVM_CAP_X86_MSR_FILTER`: the kernel has the call `KVM_X86_SET_MSR_FILTER` (S1.2).
    #[must_use]
    pub const fn msr_filter(revision: Revision) -> Self {
        Self(revision.msr_filter())
    }

    /// The number of the capability.
    #[must_use]
    pub const fn get(self) -> u32 {
        self.0
    }
}

/// The result of `KVM_CHECK_EXTENSION`: 0 if the capability is absent, 1 or more if it is present.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Extension(i32);

impl Extension {
    /// The kernel does not have the capability: `KVM_CHECK_EXTENSION` returns 0.
    pub const ABSENT: Self = Self(0);
    /// The kernel has the capability: `KVM_CHECK_EXTENSION` returns 1.
    pub const PRESENT: Self = Self(1);

    /// The number that `KVM_CHECK_EXTENSION` returns.
    #[must_use]
    pub const fn get(self) -> i32 {
        self.0
    }
}
