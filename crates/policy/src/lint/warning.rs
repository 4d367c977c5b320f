//! A warning, and its kinds.

use std::collections::HashSet;

use crate::policy::{Entry, Policy};

/// One warning.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Warning<'c> {
    /// The kind of warning.
    pub code: Code,
    /// The entry that the warning is about; `None` is the policy as a whole.
    pub entry: Option<&'c Entry>,
    /// A line that says what the policy does.
    pub message: String,
    /// The parts of what the warning is about, a line for each.
    pub details: Vec<String>,
    /// A line that says what to do next.
    pub help: String,
}

/// The kind of a warning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Code {
    /// An entry that inherits both directions.
    SaysNothing,
    /// An entry of the policy's own text that decides no access.
    DecidesNothing,
    /// An entry for registers that no source names.
    Nameless,
    /// A range that allows far more MSRs than have a name.
    TooWide,
    /// An entry that an included entry within its range loosens.
    Punctured,
    /// A refusal or an answer that some accesses bypass.
    Gap,
    /// A pin, which the next kernel of a guest meets after kexec.
    PinKexec,
    /// A pinned, masked or sticky register that other instructions write.
    ChangedUnasked,
    /// A microcode device whose revision the guest cannot read.
    RevisionUnread,
    /// State that user space keeps, and a migration loses unless the VMM saves it.
    StateNotMigrated,
    /// A register that the policy refuses and the CPUID of the host's guests offers.
    CpuidRefused,
    /// A register that a guest may write and the host's KVM does not list as one to save.
    NotSaved,
}

impl Code {
    #[cfg(test)]
    pub(super) const ALL: [Self; 12] = [
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

    /// The word for the kind, which stays as it is: `decides-nothing`.
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

    /// The line that stands once above all warnings of a kind that many entries may have, in place of
    /// the message of each.
    #[must_use]
    pub const fn heading(self) -> Option<&'static str> {
        match self {
            Self::CpuidRefused => {
                Some("the policy refuses registers that the CPUID of this host's guests offers")
            }
            Self::NotSaved => Some(
                "a guest may write registers that this host's KVM_GET_MSR_INDEX_LIST does not name: a migration may lose them",
            ),
            _ => None,
        }
    }
}

/// Keeps each warning once, however many processors it is about.
pub(super) fn once(mut warnings: Vec<Warning<'_>>) -> Vec<Warning<'_>> {
    let mut seen = HashSet::new();
    warnings.retain(|warning| seen.insert(warning.message.clone()));
    warnings
}

/// Returns true if the policy accepts this gap.
pub(super) fn is_accepted(policy: &Policy, gap: &str) -> bool {
    let mut accepted = policy.settings().accept.iter();
    accepted.any(|word| **word == *gap)
}
