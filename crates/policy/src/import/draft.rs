//! Entries that a policy could have, before they have a text.

use std::fmt;

use msrgate_program::{Action, Cpu, MsrRange, MsrSet, one_line};

use crate::policy::Log;

/// An entry to be.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Draft {
    /// The MSRs: one range, or a group.
    pub msrs: MsrSet,
    /// By [`Access`](msrgate_filter::Access); `None` where the file says nothing of a direction.
    pub actions: [Option<Action>; 2],
    /// Which of these accesses become events, where that is not what the settings say.
    pub log: Option<Log>,
    /// What the file says of it, for a comment.
    pub why: Option<String>,
}

impl Draft {
    /// What is said of one range, and no more.
    pub(super) fn new(msrs: MsrRange, actions: [Option<Action>; 2]) -> Self {
        Self {
            msrs: msrs.into(),
            actions,
            log: None,
            why: None,
        }
    }

    /// Whether it says the same, of whatever MSRs.
    pub(super) fn says_as_much_as(&self, other: &Self) -> bool {
        self.actions == other.actions && self.log == other.log && self.why == other.why
    }
}

/// The processors on which an imported policy decides as its file does.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Scope {
    /// All of them, as far as the file says.
    All,
    /// The processor that the filter was compiled for, as the file names it: any text. On others, the policy that the
    /// filter came from may decide otherwise.
    CompiledFor(String),
    /// Processors such as this one. The program decides otherwise on others, which is [unsaid](Loss).
    Like(Cpu),
}

/// A sign that a part of a file is missing, from the lightest to the gravest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Gap {
    /// The log says that messages are missing from it.
    LostMessages,
    /// No line feed ends the last line, which was not read.
    CutOff,
}

/// Something in a file that a policy cannot say.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Loss {
    /// Where it stands, counted from 1; `None` for the whole file, and in JSON.
    pub line: Option<usize>,
    /// What it is, and what holds instead.
    pub what: String,
}

impl fmt::Display for Loss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            Some(line) => write!(f, "line {line}: {}", one_line(&self.what)),
            None => f.write_str(&one_line(&self.what)),
        }
    }
}
