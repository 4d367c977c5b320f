//! Learning: the accesses that a guest made become entries of a policy.
//!
//! [`learn`] adds to a policy what a run of a guest needs, and keeps everything that the policy's author
//! wrote. [`EMPTY`] is the policy to begin with: it denies everything.
//!
//! ```
//! use msrgate_filter::{Access, MsrIndex};
//! use msrgate_policy::learn::{EMPTY, Fate, Notes, Sighting, learn};
//! use msrgate_policy::{NoIncludes, Source};
//!
//! let seen = Sighting::new(MsrIndex::new(0x10), Access::Read, Fate::Done);
//! let learnt = learn(&Source::new("guest.toml", EMPTY), &mut NoIncludes, &[seen], &Notes::default())?;
//! assert!(learnt.text.contains(r#"IA32_TIME_STAMP_COUNTER = { read = "allow", write = "deny""#));
//! # Ok::<_, msrgate_policy::learn::LearnError>(())
//! ```

mod entry;
mod merge;
mod recording;
mod runs;

use std::fmt;
use std::time::Duration;

use msrgate_filter::{Access, MsrIndex};

use crate::compile::NotCompiled;
use crate::mistake::Mistakes;
use crate::source::Place;
use crate::trace::LineNumber;

pub use merge::{RefusedBy, accept, learn, refused_by};
pub use recording::Recording;

/// A policy without entries, which denies every access: the policy to begin with.
pub const EMPTY: &str = "policy = 1\ndefault = \"deny\"\n";

/// The beginning of the `why` of each entry that is learnt. An entry whose `why` begins otherwise, or goes on with
/// words that learning does not write, belongs to the policy's author, and learning does not change it.
pub const MARK: &str = "learnt: ";

/// A kind of access that a guest made: one MSR in one direction, with one fate.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Sighting {
    /// The MSR that the guest accessed.
    pub index: MsrIndex,
    /// The direction of the access: a read or a write.
    pub access: Access,
    /// The fate of the access: KVM carried it out, for example, or refused it.
    pub fate: Fate,
    /// The first access of this MSR in this direction with this fate.
    pub first: First,
}

/// The first access of a kind, as far as it is known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct First {
    /// The number of the VM that made the access, if the run had several VMs.
    pub vm: Option<u32>,
    /// The number of the vCPU that made the access.
    pub vcpu: Option<u32>,
    /// The time from the creation of the VM to the access.
    pub after: Option<Duration>,
    /// The value that the guest wrote, if the access is a write.
    pub value: Option<u64>,
    /// The place in a recording, such as `guest.trace:12`.
    pub at: Option<String>,
}

/// The limits of what a run or a recording shows, as comments for the head of the policy, without `#`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Notes {
    /// Comments about accesses that are known to be missing. They stand above the other comments.
    pub missing: Vec<String>,
    /// Comments about accesses that a run or a recording of this kind never shows.
    pub unseen: Vec<String>,
}

/// The fate of an access of a guest, as far as a run or a recording shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Fate {
    /// KVM carried the access out, or nothing shows that KVM did not.
    Done,
    /// A policy refused the access, so that nothing shows how KVM would treat it.
    Untried,
    /// KVM knows the MSR, and refused this access with a #GP: the value was not valid, or the processor
    /// lacks the feature.
    Refused,
    /// KVM does not know the MSR, and a policy answered the access in its place, so that the guest went on.
    Answered,
    /// The guest got a #GP, from KVM or from a filter, each time it made this access in the
    /// recording.
    Faulted,
    /// KVM does not know the MSR, and refused the access with a #GP.
    Unknown,
}

/// The result of [`learn`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Learnt {
    /// The policy's new text, in canonical form.
    pub text: String,
    /// The accesses that the policy allows now and did not allow before, sorted by index.
    pub added: Vec<(MsrIndex, Access)>,
    /// The accesses that have an entry with `deny` now, because the guest gets a #GP without the policy, too; sorted by
    /// index.
    pub unknown: Vec<(MsrIndex, Access)>,
    /// The accesses that the guest made and that the policy goes on to refuse, sorted by index.
    pub kept: Vec<Kept>,
    /// The number of runs from which the policy was learnt, this run included.
    pub runs: u32,
    /// The number of runs since the last run that added something to the policy. This run counts,
    /// too.
    pub runs_without_news: u32,
}

/// An access that the guest made, and that the policy goes on to refuse.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Kept {
    /// The MSR that the guest accessed.
    pub index: MsrIndex,
    /// The direction of the access: a read or a write.
    pub access: Access,
    /// The reason for which learning does not allow the access.
    pub by: KeptBy,
}

/// The reason for which learning does not allow an access.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum KeptBy {
    /// An entry of the policy's author refuses the access.
    Entry {
        /// The name of the text that contains the entry.
        file: String,
        /// The place of the entry's key in that text.
        place: Place,
        /// The key of the entry, as the policy writes it.
        key: String,
    },
    /// An entry of the policy's author decides about the access, and only a person can change that entry: it
    /// stands in a `[[when]]` section, or its answer depends on the written value.
    ByHand {
        /// The name of the text that contains the entry.
        file: String,
        /// The place of the entry's key in that text.
        place: Place,
        /// The key of the entry, as the policy writes it.
        key: String,
    },
    /// No entry can decide about MSR 0xffffffff: the policy's `default` does (S3.5).
    LastMsr,
    /// The policy already uses all keys by which a new entry could name the MSR.
    KeysTaken,
}

impl Sighting {
    /// Returns a sighting of an access, without the vCPU, time, value and place of the first
    /// access.
    #[must_use]
    pub fn new(index: MsrIndex, access: Access, fate: Fate) -> Self {
        Self {
            index,
            access,
            fate,
            first: First::default(),
        }
    }

    /// Adds the vCPU, time, value and place of the first access, as far as they are known.
    #[must_use]
    pub fn with_first(mut self, first: First) -> Self {
        self.first = first;
        self
    }
}

impl First {
    /// Returns a record of a first access by this vCPU, at this time since its VM was made.
    #[must_use]
    pub fn by_vcpu(vcpu: u32, after: Duration) -> Self {
        Self {
            vm: None,
            vcpu: Some(vcpu),
            after: Some(after),
            value: None,
            at: None,
        }
    }

    /// Returns a record of a first access at this place of a recording.
    #[must_use]
    pub fn in_recording(name: &str, line: LineNumber) -> Self {
        Self {
            at: Some(format!("{name}:{line}")),
            ..Self::default()
        }
    }

    /// Adds the number of the VM, for a run with several VMs.
    #[must_use]
    pub fn of_vm(mut self, vm: u32) -> Self {
        self.vm = Some(vm);
        self
    }

    /// Adds the value that the guest wrote.
    #[must_use]
    pub fn writing(mut self, value: u64) -> Self {
        self.value = Some(value);
        self
    }
}

/// An error of [`learn`]. The policy is not changed.
#[derive(Debug)]
#[non_exhaustive]
pub enum LearnError {
    /// The policy has mistakes, or would have mistakes with the learnt entries.
    Mistakes(Box<Mistakes>),
    /// The policy does not fit a filter, or would not fit with the learnt entries.
    NotCompiled(NotCompiled),
}

impl fmt::Display for LearnError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Mistakes(mistakes) => fmt::Display::fmt(mistakes, f),
            Self::NotCompiled(error) => fmt::Display::fmt(error, f),
        }
    }
}

impl std::error::Error for LearnError {}

impl From<Box<Mistakes>> for LearnError {
    fn from(mistakes: Box<Mistakes>) -> Self {
        Self::Mistakes(mistakes)
    }
}

impl From<NotCompiled> for LearnError {
    fn from(error: NotCompiled) -> Self {
        Self::NotCompiled(error)
    }
}
