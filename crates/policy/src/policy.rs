//! What a policy says, after its text is understood and before anything is resolved.

use std::fmt;

use miette::SourceSpan;
use msrgate_filter::{Access, MsrIndex};

use crate::source::{Place, Source};

/// What is to happen to an access.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Action {
    /// KVM handles it as if there were no policy.
    Allow,
    /// The guest gets #GP.
    Deny,
}

impl Action {
    /// The word for it in a policy.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Allow => "allow",
            Self::Deny => "deny",
        }
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

/// Consecutive MSRs, at least one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct MsrRange {
    first: MsrIndex,
    last: MsrIndex,
}

impl MsrRange {
    /// From `first` to `last`, both inside. `None` if that is no MSR.
    #[must_use]
    pub fn new(first: MsrIndex, last: MsrIndex) -> Option<Self> {
        (first <= last).then_some(Self { first, last })
    }

    /// One MSR.
    #[must_use]
    pub const fn one(index: MsrIndex) -> Self {
        Self {
            first: index,
            last: index,
        }
    }

    /// The lowest.
    #[must_use]
    pub const fn first(self) -> MsrIndex {
        self.first
    }

    /// The highest.
    #[must_use]
    pub const fn last(self) -> MsrIndex {
        self.last
    }

    /// How many, at most 2^32.
    #[must_use]
    pub fn count(self) -> u64 {
        u64::from(self.last.get() - self.first.get()) + 1
    }

    /// Whether `index` is one of them.
    #[must_use]
    pub fn contains(self, index: MsrIndex) -> bool {
        (self.first..=self.last).contains(&index)
    }

    pub(crate) fn overlaps(self, other: Self) -> bool {
        self.first <= other.last && other.first <= self.last
    }
}

/// `0x10`, or `0x10..=0x1f`: as a policy writes it.
impl fmt::Display for MsrRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.first == self.last {
            write!(f, "{}", self.first)
        } else {
            write!(f, "{}..={}", self.first, self.last)
        }
    }
}

/// An entry's place in [`Policy::entries`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EntryId(pub(crate) usize);

/// One line of `[msrs]`.
#[derive(Clone, Debug)]
pub struct Entry {
    pub(crate) key: Box<str>,
    pub(crate) span: SourceSpan,
    pub(crate) place: Place,
    pub(crate) msrs: MsrRange,
    /// By [`Access`]; `None` takes what a wider entry or the default says.
    pub(crate) actions: [Option<Action>; 2],
    pub(crate) why: Option<Box<str>>,
}

impl Entry {
    /// The key as the policy writes it: a name, an index or a range.
    #[must_use]
    pub fn key(&self) -> &str {
        &self.key
    }

    /// Where the key stands.
    #[must_use]
    pub const fn place(&self) -> Place {
        self.place
    }

    /// The MSRs it speaks of.
    #[must_use]
    pub const fn msrs(&self) -> MsrRange {
        self.msrs
    }

    /// What it says of one direction, or `None` where it says `"inherit"`.
    #[must_use]
    pub const fn action(&self, access: Access) -> Option<Action> {
        self.actions[access as usize]
    }

    /// The author's reason.
    #[must_use]
    pub fn why(&self) -> Option<&str> {
        self.why.as_deref()
    }
}

/// A policy without mistakes: entries that overlap are nested, or agree.
#[derive(Clone, Debug)]
pub struct Policy {
    pub(crate) source: Source,
    pub(crate) name: Option<Box<str>>,
    pub(crate) default: Action,
    pub(crate) entries: Vec<Entry>,
}

impl Policy {
    /// The text it was read from.
    #[must_use]
    pub const fn source(&self) -> &Source {
        &self.source
    }

    /// Its `name`, if it has one.
    #[must_use]
    pub fn name(&self) -> Option<&str> {
        self.name.as_deref()
    }

    /// What happens to MSRs that no entry names, reads and writes alike.
    #[must_use]
    pub const fn default_action(&self) -> Action {
        self.default
    }

    /// Its entries, in the order of the text.
    #[must_use]
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// The ids of its entries, in the same order.
    pub fn ids(&self) -> impl Iterator<Item = EntryId> {
        (0..self.entries.len()).map(EntryId)
    }

    /// The entry with this id.
    ///
    /// # Panics
    /// The id is another policy's and this one has fewer entries.
    #[must_use]
    pub fn entry(&self, id: EntryId) -> &Entry {
        &self.entries[id.0]
    }
}
