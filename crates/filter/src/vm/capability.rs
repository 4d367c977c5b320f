//! What user space may ask a VM about, and switch on (S1).

use crate::revision::Revision;

/// A `KVM_CAP_*` number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Capability(u32);

impl Capability {
    /// The capability with this number, known or not.
    #[must_use]
    pub const fn new(number: u32) -> Self {
        Self(number)
    }

    /// `KVM_CAP_X86_USER_SPACE_MSR`: exits in place of #GP (S1.1).
    #[must_use]
    pub const fn user_space_msr(revision: Revision) -> Self {
        Self(revision.user_space_msr())
    }

    /// `KVM_CAP_X86_MSR_FILTER`: `KVM_X86_SET_MSR_FILTER` exists (S1.2).
    #[must_use]
    pub const fn msr_filter(revision: Revision) -> Self {
        Self(revision.msr_filter())
    }

    /// The number itself.
    #[must_use]
    pub const fn get(self) -> u32 {
        self.0
    }
}

/// What `KVM_CHECK_EXTENSION` returns: 0 for no, 1 or more for yes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Extension(i32);

impl Extension {
    /// Not there.
    pub const ABSENT: Self = Self(0);
    /// There, with no more to say.
    pub const PRESENT: Self = Self(1);

    /// The number itself.
    #[must_use]
    pub const fn get(self) -> i32 {
        self.0
    }
}
