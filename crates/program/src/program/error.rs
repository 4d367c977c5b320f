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
    /// The bytes end before the program is complete.
    Ends {
        /// The number of bytes that were given.
        at: usize,
    },
    /// Bytes follow the program.
    Trailing {
        /// The position of the first byte after the program.
        at: usize,
    },
    /// The program has an invalid value at some position.
    Value {
        /// The position directly after the invalid value.
        at: usize,
        /// A description of the values that are valid at that position.
        what: &'static str,
    },
    /// Two policy texts of the program have this name, so that an event's line number would not
    /// tell which text it belongs to.
    SameName(Box<str>),
    /// The ranges in the bytes do not form a valid filter.
    Filter(FilterError),
    /// The filter and the rules differ on this access.
    Differs {
        /// The MSR of the access.
        index: MsrIndex,
        /// The direction of the access.
        access: Access,
    },
    /// The digest does not match the rules.
    WrongDigest {
        /// The digest that the bytes contain.
        found: Digest,
        /// The digest that was computed from the rules.
        computed: Digest,
    },
}

impl fmt::Display for ProgramError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotAProgram => f.write_str("the bytes are not a program of msrgate"),
            Self::UnknownVersion(version) => {
                write!(
                    f,
                    "the program has version {version}, but this msrgate knows only version 1"
                )
            }
            Self::Ends { at } => write!(
                f,
                "the program is cut off after {at} bytes; compile the policy again"
            ),
            Self::Trailing { at } => write!(
                f,
                "more bytes follow the program, which ends after {at} bytes; compile the policy again"
            ),
            Self::Value { at, what } => write!(
                f,
                "the program is damaged: the value before byte {at} is not {what}; compile the policy again"
            ),
            Self::SameName(name) => write!(
                f,
                "two files of the program have the name `{}`; compile the policy again",
                quoted(name)
            ),
            Self::Filter(error) => fmt::Display::fmt(error, f),
            Self::Differs { index, access } => {
                write!(
                    f,
                    "the filter of the program does not decide a {access} of {index} as its rules do; compile the policy again"
                )
            }
            Self::WrongDigest { found, computed } => {
                write!(
                    f,
                    "the program has the digest {found}, but its rules have the digest {computed}; compile the policy again"
                )
            }
        }
    }
}

impl core::error::Error for ProgramError {}
