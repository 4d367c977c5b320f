//! The keys and words of the language, which the parser and the schema share.

use msrgate_program::{Action, Device, Outside};

use crate::lint::Code;
use crate::policy::{Log, Mode, Unknown, UnknownAction, Update};
use crate::registers::{self, GapKind};

/// Words of the language, each with its meaning.
pub(crate) type Words<T, const N: usize> = [(&'static str, T); N];

/// Keys at the top level of a policy.
pub(crate) const TOP: [&str; 11] = [
    "policy", "name", "include", "mode", "default", "unknown", "log", "accept", "msrs", "device",
    "when",
];

/// Keys of the table of an entry.
pub(crate) const ENTRY: [&str; 8] = [
    "read", "write", "device", "register", "why", "log", "override", "final",
];

/// Keys of the table that gives the action of one direction.
pub(crate) const ACTION: [&str; 7] = [
    "value", "mask", "outside", "sticky", "handler", "device", "register",
];

/// Keys of a register in user space.
pub(crate) const REGISTER: [&str; 3] = ["reset", "mask", "outside"];

/// Keys of the table `unknown`.
pub(crate) const UNKNOWN: [&str; 3] = ["read", "write", "log"];

/// Keys of the table `[device.microcode]`.
pub(crate) const MICROCODE: [&str; 2] = ["revision", "update"];

/// Keys of a `[[when]]` section.
pub(crate) const WHEN: [&str; 2] = ["cpu", "msrs"];

/// Keys of the `cpu` of a `[[when]]`.
pub(crate) const CPU: [&str; 4] = ["vendor", "family", "model", "stepping"];

/// The known vendors. A name that is similar to one of these counts as misspelt. Any other name of
/// twelve bytes is a vendor, too.
pub(crate) const VENDORS: [&str; 5] = [
    "GenuineIntel",
    "AuthenticAMD",
    "HygonGenuine",
    "CentaurHauls",
    // Zhaoxin.
    "  Shanghai  ",
];

/// The meaning of the value that an entry has for one direction.
#[derive(Clone)]
pub(crate) enum Says {
    /// The word `inherit`: the action of a wider entry or of the default applies.
    Inherit,
    This(Action),
}

/// Words for the actions of both directions at once, such as `rw`.
pub(crate) const BOTH: Words<[Action; 2], 4> = [
    ("rw", [Action::Allow, Action::Allow]),
    ("r", [Action::Allow, Action::Deny]),
    ("w", [Action::Deny, Action::Allow]),
    ("none", [Action::Deny, Action::Deny]),
];

/// Words for the action of one direction.
pub(crate) const ONE: Words<Says, 7> = [
    ("allow", Says::This(Action::Allow)),
    ("deny", Says::This(Action::Deny)),
    ("kill", Says::This(Action::Kill)),
    ("inherit", Says::Inherit),
    ("ignore", Says::This(Action::Ignore)),
    ("pin", Says::This(Action::Pin)),
    ("sticky", Says::This(Action::Sticky(u64::MAX))),
];

/// Words that the key `log` may have as its value.
pub(crate) const LOGS: Words<Log, 4> = [
    ("none", Log::None),
    ("denied", Log::Denied),
    ("first", Log::First),
    ("all", Log::All),
];

/// Words that the key `mode` may have as its value.
pub(crate) const MODES: Words<Mode, 2> = [("enforce", Mode::Enforce), ("audit", Mode::Audit)];

/// Words that the key `default` may have as its value.
pub(crate) const DEFAULTS: Words<Action, 3> = [
    ("allow", Action::Allow),
    ("deny", Action::Deny),
    ("kill", Action::Kill),
];

/// Words that the key `unknown` may have as its value.
pub(crate) const UNKNOWNS: Words<Unknown, 2> = [
    (
        "gp",
        Unknown {
            read: UnknownAction::Deny,
            write: UnknownAction::Deny,
            log: None,
        },
    ),
    (
        "ignore",
        Unknown {
            read: UnknownAction::Value(0),
            write: UnknownAction::Ignore,
            log: None,
        },
    ),
];

/// Words for the answer to a write of an unknown MSR.
pub(crate) const UNKNOWN_WRITES: Words<UnknownAction, 2> = [
    ("deny", UnknownAction::Deny),
    ("ignore", UnknownAction::Ignore),
];

/// Words that the key `outside` may have as its value.
pub(crate) const OUTSIDES: Words<Outside, 2> = [("deny", Outside::Deny), ("keep", Outside::Keep)];

/// Words for `device`, and the keys of `[device]`.
pub(crate) const DEVICES: Words<Device, 1> = [("microcode", Device::Microcode)];

/// Words that the key `update` may have as its value.
pub(crate) const UPDATES: Words<Update, 3> = [
    ("accept", Update::Accept),
    ("ignore", Update::Ignore),
    ("deny", Update::Deny),
];

/// Returns the words for `accept` that are names of gaps. The last gap is one of the gate, and not of the
/// kernel: a migration loses the gate's state.
pub(crate) fn gaps() -> impl Iterator<Item = &'static str> {
    let gaps = registers::gaps().filter(|gap| gap.kind != GapKind::Use);
    gaps.map(|gap| gap.name)
        .chain([Code::StateNotMigrated.word()])
}

/// Returns the words for `accept` that are kinds of warnings and no gaps.
pub(crate) fn warnings() -> impl Iterator<Item = Code> {
    let of_word = |code: &Code| code.is_accepted_by_word() && *code != Code::StateNotMigrated;
    Code::ALL.into_iter().filter(of_word)
}

/// Returns the word with this meaning.
pub(crate) fn word_for<T: PartialEq, const N: usize>(
    words: &Words<T, N>,
    meaning: &T,
) -> &'static str {
    let found = words.iter().find(|(_, known)| known == meaning);
    found.map_or("", |(word, _)| word)
}
