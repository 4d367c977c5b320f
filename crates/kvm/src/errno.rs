//! How a call into the kernel failed: an error number this mechanism knows, or the number itself.

use std::fmt;
use std::io;

use msrgate_filter::Errno;

/// The error number of a failed call.
///
/// An outcome as much as an error: which one a bad filter gets is part of the behaviour (S2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CallErrno {
    /// One that S2 and S5 speak of.
    Known(Errno),
    /// Any other.
    Other(RawErrno),
}

/// An error number of Linux, positive, as in `errno.h`.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct RawErrno(i32);

const KNOWN: [Errno; 4] = [Errno::Eintr, Errno::Efault, Errno::Einval, Errno::Enotty];

impl CallErrno {
    /// The number itself.
    #[must_use]
    pub const fn number(self) -> RawErrno {
        match self {
            Self::Known(errno) => RawErrno(errno.number()),
            Self::Other(number) => number,
        }
    }

    /// What the calling thread's last failed call left in `errno`.
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

/// 0 for an error that no call made.
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

/// `EINVAL`, or what the C library says to a number that has no name here.
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
    /// This number.
    #[must_use]
    pub const fn new(number: i32) -> Self {
        Self(number)
    }

    /// The number.
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
    fn known_numbers_have_their_names_and_others_stay_numbers() {
        let known = CallErrno::from(RawErrno::new(libc::EFAULT));
        assert_eq!(known, CallErrno::Known(Errno::Efault));
        assert_eq!(known.to_string(), "EFAULT");
        let other = CallErrno::from(RawErrno::new(libc::EBUSY));
        assert_eq!(other, CallErrno::Other(RawErrno(libc::EBUSY)));
        assert_eq!(other.number().get(), libc::EBUSY);
    }
}
