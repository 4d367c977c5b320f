//! The error numbers with which KVM's calls for MSR filters and MSR exits fail.

use core::fmt;

/// An error number of Linux on x86, with which a system call fails. A guest's access that the filter denies
/// has no error number: the type of its verdict is [`Verdict`](crate::Verdict) (S8).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Errno {
    /// `EINTR`, 4: `KVM_RUN` returned at once, because `immediate_exit` was set (S5.6).
    Eintr,
    /// `EFAULT`, 14: the kernel cannot read memory of the caller.
    Efault,
    /// `EINVAL`, 22: the kernel does not accept the arguments of the call.
    Einval,
    /// `ENOTTY`, 25: the kernel does not have the ioctl.
    Enotty,
}

impl Errno {
    /// The error number as in `errno.h`, positive.
    #[must_use]
    pub const fn number(self) -> i32 {
        match self {
            Self::Eintr => 4,
            Self::Efault => 14,
            Self::Einval => 22,
            Self::Enotty => 25,
        }
    }

    /// The name of the error number in `errno.h`, such as `EINVAL`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Eintr => "EINTR",
            Self::Efault => "EFAULT",
            Self::Einval => "EINVAL",
            Self::Enotty => "ENOTTY",
        }
    }
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl core::error::Error for Errno {}
