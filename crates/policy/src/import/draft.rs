//! Drafts: entries that a policy could have, before they have a text.

use std::fmt;

use msrgate_program::{Action, Cpu, MsrRange, MsrSet, one_line};

use crate::policy::Log;

/// An entry of an imported policy, before it has a text.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Draft {
    /// The MSRs: one range, or a group.
    pub msrs: MsrSet,
    /// The actions, indexed by [`Access`](msrgate_filter::Access). `None`: the file says nothing
    /// about this direction.
    pub actions: [Option<Action>; 2],
    /// The accesses that become events. `None`: the `log` of the imported policy's settings
    /// decides.
    pub log: Option<Log>,
    /// The file's remark about the entry, for a comment.
    pub why: Option<String>,
}

impl Draft {
    /// Returns a draft for one range with these actions, and without `log` and `why`.
    pub(super) fn new(msrs: MsrRange, actions: [Option<Action>; 2]) -> Self {
        Self {
            msrs: msrs.into(),
            actions,
            log: None,
            why: None,
        }
    }

    /// Returns true if another draft has the same content, except for its MSRs.
    pub(super) fn says_as_much_as(&self, other: &Self) -> bool {
        self.actions == other.actions && self.log == other.log && self.why == other.why
    }
}

/// The processors on which an imported policy decides as its file does.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Scope {
    /// All processors, as far as the file tells.
    All,
    /// The processor that the filter was compiled for, as the file names it: any text. On other
    /// processors, the policy from which the filter was compiled may decide otherwise.
    CompiledFor(String),
    /// Processors like this one. On other processors the program decides otherwise, and a
    /// [remark](Loss) says so.
    Like(Cpu),
}

/// A sign that a part of a file is missing, ordered from the lightest to the gravest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Gap {
    /// A line that seems to be about an MSR could not be read, and was skipped.
    Skipped,
    /// The file is a kernel's log, which says that messages are missing from it.
    LostMessages,
    /// A part of the file was cut off or overwritten: the last line has no line feed, and was not
    /// read, or the file has a byte that is 0.
    CutOff,
}

/// The consequence of a [`Loss`] for the policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum LossKind {
    /// The policy lacks the part of the file that the remark is about.
    LeftOut,
    /// The policy has an entry for the part of the file, or needs none. The remark tells what is
    /// unsure.
    Note,
}

/// A part of a file that a policy cannot express, or of which something is unsure.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Loss {
    /// The consequence for the imported policy: a part of the file is left out, or only unsure.
    pub kind: LossKind,
    /// The number of the line in the file, counted from 1. `None`: the remark is about the whole
    /// file, or about a part of a JSON file.
    pub line: Option<usize>,
    /// The description of the part of the file, and the rule that holds in the policy in its place.
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
