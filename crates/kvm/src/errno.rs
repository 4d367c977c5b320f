//! Error numbers of failed system calls: those that `msrgate-filter` names, and all others as raw numbers.

use std::fmt;
use std::io;

use msrgate_filter::Errno;

/// The error number with which a system call failed.
///
/// The number is part of KVM's behaviour: chapter S2 of `docs/kvm-semantics.md` says which malformed filter
/// gets which error number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CallErrno {
    /// An error number that S2 or S5 of `docs/kvm-semantics.md` names.
    Known(Errno),
    /// An error number that S2 and S5 do not name.
    Other(RawErrno),
}

/// A positive error number of Linux, as in `errno.h`.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct RawErrno(i32);

const KNOWN: [Errno; 4] = [Errno::Eintr, Errno::Efault, Errno::Einval, Errno::Enotty];

impl CallErrno {
    /// The error number as the kernel returned it.
    #[must_use]
    pub const fn number(self) -> RawErrno {
        match self {
            Self::Known(errno) => RawErrno(errno.number()),
            Self::Other(number) => number,
        }
    }

    /// Returns the calling thread's `errno`, which the thread's last failed system call has set.
    pub(crate) fn last() -> Self {
        vmm_sys_util::errno::Error::last().into()
    }
}

impl From<RawErrno> for CallErrno {
    fn from(number: RawErrno) -> Self {
        KNOWN
            .into_iter()
            .find(|known| known.number() == number.0)
            .map_or(Self::Other(number), Self::Known)
    }
}

/// The error number of an `io::Error`; 0 if the error does not come from a system call.
impl From<io::Error> for CallErrno {
    fn from(error: io::Error) -> Self {
        RawErrno(error.raw_os_error().unwrap_or(0)).into()
    }
}

impl From<vmm_sys_util::errno::Error> for CallErrno {
    fn from(error: vmm_sys_util::errno::Error) -> Self {
        RawErrno(error.errno()).into()
    }
}

/// Prints the symbolic name, such as `EINVAL`. For a number without a name here, prints the C library's
/// text.
impl fmt::Display for CallErrno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Known(errno) => errno.fmt(f),
            Self::Other(number) => number.fmt(f),
        }
    }
}

impl std::error::Error for CallErrno {}

impl RawErrno {
    /// Creates the error number with this value.
    #[must_use]
    pub const fn new(number: i32) -> Self {
        Self(number)
    }

    /// The error number as an integer.
    #[must_use]
    pub const fn get(self) -> i32 {
        self.0
    }
}

impl fmt::Debug for RawErrno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

impl fmt::Display for RawErrno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        io::Error::from_raw_os_error(self.0).fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errno_converts_to_known_if_filter_crate_names_it_and_else_to_other() {
        let known = CallErrno::from(RawErrno::new(libc::EFAULT));
        assert_eq!(known, CallErrno::Known(Errno::Efault));
        assert_eq!(known.to_string(), "EFAULT");
        let other = CallErrno::from(RawErrno::new(libc::EBUSY));
        assert_eq!(other, CallErrno::Other(RawErrno(libc::EBUSY)));
        assert_eq!(other.number().get(), libc::EBUSY);
    }
}
