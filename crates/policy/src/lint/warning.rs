//! A warning about a policy, and the kinds of warnings.

use std::collections::HashSet;

use crate::policy::{Entry, Policy};

/// One warning about a policy.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Warning<'c> {
    /// The kind of this warning.
    pub code: Code,
    /// The entry that the warning is about. `None`: the policy as a whole.
    pub entry: Option<&'c Entry>,
    /// A line that describes what the policy does.
    pub message: String,
    /// The details, each a line: for example the registers.
    pub details: Vec<String>,
    /// The advice on what to do about the warning, as one line.
    pub help: String,
    /// The word by which a policy's `accept` accepts the warning: the name of a gap, or the word for the kind.
    pub accept: &'static str,
}

impl<'c> Warning<'c> {
    /// Makes a warning without details, which a policy accepts by the word for its kind.
    pub(super) fn new(
        code: Code,
        entry: Option<&'c Entry>,
        message: String,
        help: impl Into<String>,
    ) -> Self {
        Self {
            code,
            entry,
            message,
            details: Vec::new(),
            help: help.into(),
            accept: code.word(),
        }
    }
}

/// The kind of a warning about a policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Code {
    /// The entry inherits its actions for reads and for writes, so it has no effect.
    SaysNothing,
    /// The entry decides no access. The policy's own text contains the entry.
    DecidesNothing,
    /// The entry contains no register that msrgate has a name for.
    Nameless,
    /// The entry is a range that allows far more MSRs than have a name.
    TooWide,
    /// An included entry loosens a part of this wider entry.
    Punctured,
    /// The policy refuses or answers some accesses, but a gap lets them bypass the entry.
    Gap,
    /// A pinned register stays pinned when the guest starts another kernel by kexec, and that
    /// kernel cannot write another value to it.
    PinKexec,
    /// Instructions other than WRMSR write a pinned, masked or sticky register.
    ChangedUnasked,
    /// The guest cannot read the revision that the microcode device reports.
    RevisionUnread,
    /// A migration loses state that user space keeps, unless the VMM saves it.
    StateNotMigrated,
    /// The policy refuses a register that the CPUID of the host's guests offers.
    CpuidRefused,
    /// The guest may write a register that the host's KVM does not list as one to save.
    NotSaved,
}

impl Code {
    /// All kinds of warnings.
    pub const ALL: [Self; 12] = [
        Self::SaysNothing,
        Self::DecidesNothing,
        Self::Nameless,
        Self::TooWide,
        Self::Punctured,
        Self::Gap,
        Self::PinKexec,
        Self::ChangedUnasked,
        Self::RevisionUnread,
        Self::StateNotMigrated,
        Self::CpuidRefused,
        Self::NotSaved,
    ];

    /// The word for the kind, such as `decides-nothing`. The word is stable.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::SaysNothing => "says-nothing",
            Self::DecidesNothing => "decides-nothing",
            Self::Nameless => "nameless",
            Self::TooWide => "too-wide",
            Self::Punctured => "punctured",
            Self::Gap => "gap",
            Self::PinKexec => "pin-kexec",
            Self::ChangedUnasked => "changed-unasked",
            Self::RevisionUnread => "revision-unread",
            Self::StateNotMigrated => "state-not-migrated",
            Self::CpuidRefused => "cpuid-refused",
            Self::NotSaved => "not-saved",
        }
    }

    /// Returns true if a policy accepts a warning of this kind by the kind's word. Warnings of the other kinds
    /// are about gaps, and a policy accepts each gap by its name.
    #[must_use]
    pub const fn is_accepted_by_word(self) -> bool {
        !matches!(self, Self::Gap | Self::ChangedUnasked)
    }

    /// The description of the kind: a phrase that says what a warning is about.
    #[must_use]
    pub const fn about(self) -> &'static str {
        match self {
            Self::SaysNothing => "an entry that inherits both directions",
            Self::DecidesNothing => {
                "an entry whose MSRs other entries decide, and that is not `punctured`"
            }
            Self::Nameless => "an entry of no register that a public source names",
            Self::TooWide => "a range that allows far more registers than the named ones in it",
            Self::Punctured => {
                "an entry of an include that loosens part of what a wider entry says in another file"
            }
            Self::Gap => "a refusal or an answer that some accesses bypass",
            Self::PinKexec => {
                "pins: a guest that starts another kernel by kexec cannot write these registers again"
            }
            Self::ChangedUnasked => {
                "a `pin`, `mask` or `sticky` of a register that another instruction writes"
            }
            Self::RevisionUnread => {
                "the emulated microcode device has a revision, but no guest can read it"
            }
            Self::StateNotMigrated => {
                "an answer that depends on state which no VMM's own migration stream has"
            }
            Self::CpuidRefused => "refused registers that come with bits of CPUID that are set",
            Self::NotSaved => {
                "a register that a guest can change and `KVM_GET_MSR_INDEX_LIST` does not name"
            }
        }
    }

    /// The line that stands once above all warnings of a kind that many entries may have. The line
    /// replaces the message of each warning.
    #[must_use]
    pub const fn heading(self) -> Option<&'static str> {
        match self {
            Self::DecidesNothing => {
                Some("entries have no effect, because other entries decide all of their MSRs")
            }
            Self::Nameless => Some("entries name no register that msrgate knows"),
            Self::NotSaved => Some(
                "a guest can change registers that this host's KVM_GET_MSR_INDEX_LIST does not name: a migration may lose them",
            ),
            _ => None,
        }
    }
}

/// The maximum number of items that a message lists.
const LISTED: usize = 8;

/// Returns the first items of a list, and the number of further items.
pub(super) fn listed(all: impl ExactSizeIterator<Item = String>) -> String {
    let more = match all.len().saturating_sub(LISTED) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    let shown: Vec<_> = all.take(LISTED).collect();
    shown.join(", ") + &more
}

/// Removes repeated warnings, which arise when a warning applies to several variants.
pub(super) fn once(mut warnings: Vec<Warning<'_>>) -> Vec<Warning<'_>> {
    let mut seen = HashSet::new();
    warnings.retain(|warning| seen.insert(warning.message.clone()));
    warnings
}

/// Returns true if the policy accepts this warning.
pub(super) fn is_accepted(policy: &Policy, warning: &Warning<'_>) -> bool {
    let mut accepted = policy.settings().accept.iter();
    accepted.any(|word| **word == *warning.accept)
}
