//! Everything that can be wrong with a policy's text, with the place and what to do about it.

use miette::{Diagnostic, SourceSpan};
use thiserror::Error;

use crate::policy::{Action, MsrRange};
use crate::selector::SelectorError;
use crate::source::{Place, Source};
use msrgate_filter::{Access, Accesses};

/// One thing that is wrong.
#[derive(Clone, Debug, Error, Diagnostic, PartialEq, Eq)]
#[non_exhaustive]
pub enum Mistake {
    /// The text is not TOML.
    #[error("not TOML: {message}")]
    Syntax {
        /// What the TOML parser says.
        message: String,
        /// Where.
        #[label]
        at: SourceSpan,
    },
    /// The file is longer than [`MAX_BYTES`](crate::MAX_BYTES).
    #[error("the policy has {bytes} bytes, more than the {limit} that one may have")]
    #[diagnostic(help("name ranges instead of single MSRs: `\"0x200..=0x20f\" = \"r\"`"))]
    TooLong {
        /// How long it is.
        bytes: usize,
        /// How long it may be.
        limit: usize,
    },
    /// A line is longer than [`MAX_LINE`](crate::MAX_LINE).
    #[error("line {line} has {bytes} bytes, more than the {limit} that one may have")]
    #[diagnostic(help("write one entry a line"))]
    LongLine {
        /// The line, counted from 1.
        line: usize,
        /// How long it is.
        bytes: usize,
        /// How long it may be.
        limit: usize,
    },
    /// There are more entries than [`MAX_ENTRIES`](crate::MAX_ENTRIES).
    #[error("the policy has {entries} entries, more than the {limit} that one may have")]
    #[diagnostic(help("name ranges instead of single MSRs: `\"0x200..=0x20f\" = \"r\"`"))]
    TooManyEntries {
        /// How many there are.
        entries: usize,
        /// How many there may be.
        limit: usize,
    },
    /// A key that has to be there is not.
    #[error("`{key}` is missing")]
    #[diagnostic(help("{help}"))]
    MissingKey {
        /// The key.
        key: &'static str,
        /// What to write.
        help: &'static str,
        /// Where the table begins that should have it.
        #[label("in this table")]
        at: Option<SourceSpan>,
    },
    /// A key that means nothing here.
    #[error("unknown key `{key}`")]
    #[diagnostic(help("{help}"))]
    UnknownKey {
        /// The key.
        key: String,
        /// The nearest known key, or all of them.
        help: String,
        /// Where.
        #[label]
        at: SourceSpan,
    },
    /// A value of the wrong type.
    #[error("`{key}` is {found}, and should be {wanted}")]
    WrongType {
        /// The key.
        key: String,
        /// What stands there.
        found: &'static str,
        /// What should.
        wanted: &'static str,
        /// Where.
        #[label]
        at: SourceSpan,
    },
    /// A word that is none of those that may stand here.
    #[error("`{word}` is not a word for `{key}`")]
    #[diagnostic(help("{help}"))]
    UnknownWord {
        /// The word.
        word: String,
        /// The key whose value it is.
        key: String,
        /// The words there are, the nearest one first.
        help: String,
        /// Where.
        #[label]
        at: SourceSpan,
    },
    /// A language version this program does not know.
    #[error("policy language {version} is not known")]
    #[diagnostic(help("this msrgate knows `policy = 1`; a newer one may know more"))]
    UnknownVersion {
        /// The version as written.
        version: String,
        /// Where.
        #[label]
        at: SourceSpan,
    },
    /// A key of `[msrs]` that means no MSRs.
    #[error("{error}")]
    #[diagnostic(help("{help}"))]
    Msrs {
        /// What is wrong with it.
        error: SelectorError,
        /// What to do about it.
        help: String,
        /// Where.
        #[label]
        at: SourceSpan,
    },
    /// An entry speaks of x2APIC registers, which no filter reaches (S3.1).
    #[error("`{text}` speaks of x2APIC registers, which KVM never filters (S3.1)")]
    #[diagnostic(help("{help}"))]
    NamesX2apic {
        /// The key as written.
        text: String,
        /// The same entry without them.
        help: String,
        /// Where.
        #[label("0x800..=0x8ff cannot be named")]
        at: SourceSpan,
    },
    /// MSR 0xffffffff is to have another action than the default (S3.5).
    #[error("`{text}` gives MSR 0xffffffff its own action, and only `default` reaches it (S3.5)")]
    #[diagnostic(help("end the range at 0xfffffffe"))]
    NamesTheLastMsr {
        /// The key as written.
        text: String,
        /// Where.
        #[label]
        at: SourceSpan,
    },
    /// A table entry that leaves out a direction.
    #[error("`{key}` does not say what happens to a {access}")]
    #[diagnostic(help(
        "add `{access} = \"allow\"`, `{access} = \"deny\"`, or `{access} = \"inherit\"` to take what a wider entry or the default says"
    ))]
    MissingDirection {
        /// The entry's key.
        key: String,
        /// The direction.
        access: Access,
        /// Where.
        #[label]
        at: SourceSpan,
    },
    /// Two entries that overlap in part, or are equal, and disagree.
    #[error("`{first}` and `{second}` {how}, and disagree on {accesses}", accesses = both_or(*accesses))]
    #[diagnostic(help("{help}"))]
    Conflict {
        /// The key that comes first in the text.
        first: String,
        /// The other.
        second: String,
        /// How they meet.
        how: String,
        /// On which directions they disagree.
        accesses: Accesses,
        /// What to do.
        help: String,
        /// Where the first stands.
        #[label("{first_says}")]
        first_at: SourceSpan,
        /// What the first says.
        first_says: String,
        /// Where the second stands.
        #[label("{second_says}")]
        second_at: SourceSpan,
        /// What the second says.
        second_says: String,
    },
}

fn both_or(accesses: Accesses) -> &'static str {
    match accesses {
        Accesses::Read => "reads",
        Accesses::Write => "writes",
        Accesses::Both => "reads and writes",
    }
}

/// `allows reads, denies writes`, for a label.
pub(crate) fn says(actions: [Option<Action>; 2]) -> String {
    let one = |action: Option<Action>, of: &str| match action {
        Some(Action::Allow) => format!("allows {of}"),
        Some(Action::Deny) => format!("denies {of}"),
        None => format!("inherits {of}"),
    };
    if actions[0] == actions[1] {
        one(actions[0], "reads and writes")
    } else {
        format!(
            "{}, {}",
            one(actions[0], "reads"),
            one(actions[1], "writes")
        )
    }
}

/// How two ranges that conflict meet.
pub(crate) fn meeting(one: MsrRange, other: MsrRange) -> String {
    if one == other {
        return if one.count() == 1 {
            format!("are the same MSR, {}", one.first())
        } else {
            format!("are the same MSRs, {one}")
        };
    }
    match MsrRange::new(one.first().max(other.first()), one.last().min(other.last())) {
        Some(shared) => format!("overlap in part, in {shared}"),
        None => "are disjoint".to_owned(),
    }
}

impl Mistake {
    /// The place that a one-line message names.
    #[must_use]
    pub fn span(&self) -> Option<SourceSpan> {
        match self {
            Self::TooLong { .. } | Self::LongLine { .. } | Self::TooManyEntries { .. } => None,
            Self::MissingKey { at, .. } => *at,
            Self::Syntax { at, .. }
            | Self::UnknownKey { at, .. }
            | Self::WrongType { at, .. }
            | Self::UnknownWord { at, .. }
            | Self::UnknownVersion { at, .. }
            | Self::Msrs { at, .. }
            | Self::NamesX2apic { at, .. }
            | Self::NamesTheLastMsr { at, .. }
            | Self::MissingDirection { at, .. }
            | Self::Conflict { second_at: at, .. } => Some(*at),
        }
    }
}

/// All mistakes of one policy, in the order of its text.
#[derive(Debug, Error, Diagnostic)]
#[error("{} has {}", source_text.name(), count(*total))]
pub struct Mistakes {
    #[source_code]
    code: miette::NamedSource<String>,
    #[related]
    shown: Vec<Mistake>,
    #[help]
    more: Option<String>,
    source_text: Source,
    total: usize,
}

fn count(mistakes: usize) -> String {
    match mistakes {
        1 => "a mistake".to_owned(),
        n => format!("{n} mistakes"),
    }
}

impl Mistakes {
    /// More than these are counted, not shown: nobody reads them, and each costs a look through
    /// the whole text.
    const SHOWN: usize = 50;

    pub(crate) fn new(source: &Source, mut mistakes: Vec<Mistake>) -> Self {
        mistakes.sort_by_key(|mistake| mistake.span().map(|span| span.offset()));
        let total = mistakes.len();
        mistakes.truncate(Self::SHOWN);
        Self {
            code: source.quotable(),
            more: (total > Self::SHOWN).then(|| format!("the first {} are shown", Self::SHOWN)),
            shown: mistakes,
            source_text: source.clone(),
            total,
        }
    }

    /// How many there are, those not kept included.
    #[must_use]
    pub const fn total(&self) -> usize {
        self.total
    }

    /// The first of them, at most 50.
    #[must_use]
    pub fn mistakes(&self) -> &[Mistake] {
        &self.shown
    }

    /// Where a mistake is, if it is at one place.
    #[must_use]
    pub fn place(&self, mistake: &Mistake) -> Option<Place> {
        mistake.span().map(|span| self.source_text.place(span))
    }
}
