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

    /// The line that stands once above all warnings of a kind that many entries may have. The line
    /// replaces the message of each warning.
    #[must_use]
    pub const fn heading(self) -> Option<&'static str> {
        match self {
            Self::CpuidRefused => {
                Some("the policy refuses registers that CPUID offers to guests on this host")
            }
            Self::NotSaved => Some(
                "a guest may write registers that this host's KVM_GET_MSR_INDEX_LIST does not name: a migration may lose them",
            ),
            _ => None,
        }
    }
}

/// Removes repeated warnings, which arise when a warning applies to several variants.
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
