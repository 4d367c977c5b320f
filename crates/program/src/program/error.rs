//! The errors of decoding a program.

use alloc::boxed::Box;
use core::fmt;

use msrgate_filter::{Access, FilterError, MsrIndex};

use crate::digest::Digest;
use crate::shown::quoted;

/// An error for bytes that are not a program. Positions are counted in bytes from 0.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ProgramError {
    /// The bytes do not begin as a program does.
    NotAProgram,
    /// The bytes are a program of this version, which this crate does not know.
    UnknownVersion(u16),
    /// The bytes end too early.
    Ends {
        /// The number of bytes before the end.
        at: usize,
    },
    /// Bytes follow the program.
    Trailing {
        /// The position of the first byte after the program.
        at: usize,
    },
    /// A value is invalid.
    Value {
        /// The position after the value.
        at: usize,
        /// A description of the values that are valid here.
        what: &'static str,
    },
    /// Two texts of the program have this name, so that events cannot tell their lines apart.
    SameName(Box<str>),
    /// The ranges do not form a valid filter.
    Filter(FilterError),
    /// The filter and the rules differ on this access.
    Differs {
        /// The MSR.
        index: MsrIndex,
        /// The direction.
        access: Access,
    },
    /// The digest does not match the rules.
    WrongDigest {
        /// The digest in the bytes.
        found: Digest,
        /// The digest of the rules.
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
            Self::SameName(name) => write!(
                f,
                "two of its files are called `{}`; compile the policy again",
                quoted(name)
            ),
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
