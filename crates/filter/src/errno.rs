//! The kernel's error numbers that this mechanism can answer with.

use core::fmt;

/// An error number of Linux on x86. A verdict is never one of these (S8).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Errno {
    /// `EINTR`, 4: `KVM_RUN` was told to come straight back (S5.6).
    Eintr,
    /// `EFAULT`, 14: memory of the caller could not be read.
    Efault,
    /// `EINVAL`, 22: the arguments are not ones this call takes.
    Einval,
    /// `ENOTTY`, 25: there is no such call.
    Enotty,
}

impl Errno {
    /// The number, positive, as in `errno.h`.
    #[must_use]
    pub const fn number(self) -> i32 {
        match self {
            Self::Eintr => 4,
            Self::Efault => 14,
            Self::Einval => 22,
            Self::Enotty => 25,
        }
    }

    /// The name in `errno.h`.
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
