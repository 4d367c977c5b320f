//! Why bytes are no program.

use core::fmt;

use msrgate_filter::{Access, FilterError, MsrIndex};

use crate::digest::Digest;

/// Bytes that are no program. Places are counted in bytes from 0.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ProgramError {
    /// They do not begin as one.
    NotAProgram,
    /// They are one of a version that is not known here.
    UnknownVersion(u16),
    /// They end where more was to follow.
    Ends {
        /// How many there are.
        at: usize,
    },
    /// Something follows the program.
    Trailing {
        /// Where it begins.
        at: usize,
    },
    /// A value that nothing may have in its place.
    Value {
        /// One past it.
        at: usize,
        /// What it should be.
        what: &'static str,
    },
    /// The ranges are none that a filter may have.
    Filter(FilterError),
    /// A filter does not decide this access as its rules do.
    Differs {
        /// The MSR.
        index: MsrIndex,
        /// The direction.
        access: Access,
    },
    /// The digest is not that of the rules.
    WrongDigest {
        /// What stands there.
        found: Digest,
        /// What the rules have.
        computed: Digest,
    },
}

impl fmt::Display for ProgramError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotAProgram => f.write_str("not a program of msrgate"),
            Self::UnknownVersion(version) => {
                write!(f, "a program of version {version}; only version 1 is known")
            }
            Self::Ends { at } => write!(f, "a program cut off after {at} bytes"),
            Self::Trailing { at } => write!(f, "a program of {at} bytes with more after it"),
            Self::Value { at, what } => write!(f, "before byte {at}: not {what}"),
            Self::Filter(error) => fmt::Display::fmt(error, f),
            Self::Differs { index, access } => {
                write!(
                    f,
                    "its filter does not decide a {access} of {index} as its rules do"
                )
            }
            Self::WrongDigest { found, computed } => {
                write!(f, "its digest is {found}, that of its rules {computed}")
            }
        }
    }
}

impl core::error::Error for ProgramError {}
