//! The advice that comes with each mistake.

use msrgate_filter::Access;
use msrgate_program::{one_line, shown};

use super::MistakeKind;
use crate::selector::parse_msrs;

impl MistakeKind {
    /// Returns advice on how to correct the mistake. `None`: the message itself tells how to
    /// correct the mistake.
    #[must_use]
    pub fn help(&self) -> Option<String> {
        Some(match self {
            Self::Msrs(error) => error.help_in_policy(),
            Self::Syntax { help, .. }
            | Self::UnknownKey { help, .. }
            | Self::Misplaced { help, .. }
            | Self::UnknownDevice { help, .. }
            | Self::UnknownWord { help, .. }
            | Self::WrongType { help, .. }
            | Self::BadNumber { help, .. }
            | Self::BadRange { help, .. }
            | Self::NamesX2apic { help, .. }
            | Self::Hidden { help, .. }
            | Self::NoVendor { help, .. }
            | Self::NoProcessor { help, .. }
            | Self::UnknownAccepted { help, .. }
            | Self::Conflict { help, .. }
            | Self::Loosened { help, .. } => shown(help),
            Self::Unreadable { help, .. } => return help.as_deref().map(shown),
            Self::NamesTheLastMsr(key) => without_the_last(key),
            Self::OtherDirection { word, access } => other_direction(word, *access),
            Self::LiftedByAudit { file, .. } => {
                let file = one_line(file);
                format!(
                    "delete `mode`, or write `mode = \"audit\"` in {file}, too: only the file of a final entry can put that entry in audit mode"
                )
            }
            Self::MissingDirection { access, .. } => format!(
                "add `{access} = \"allow\"` or `{access} = \"deny\"`; `{access} = \"inherit\"` takes the action of a wider entry or of `default`"
            ),
            Self::DeviceNotSetUp { device, .. } => format!(
                "add a table `[device.{}]` with `revision` and `update`",
                one_line(device)
            ),
            _ => return self.fixed_help().map(str::to_owned),
        })
    }

    /// Returns the advice that all mistakes of a kind share.
    fn fixed_help(&self) -> Option<&'static str> {
        Some(match self {
            Self::MissingKey { help, .. }
            | Self::DuplicateKey { help, .. }
            | Self::DeviceElsewhere { help, .. } => help,
            Self::TooLong { .. } => SINGLE_MSRS,
            Self::CanonicalForm { .. } => {
                "delete repeated entries, or do not format this file: all commands except `fmt` take it as it is"
            }
            Self::TooMany { what, .. } => fewer(what),
            Self::NotAPolicy { .. } => {
                "begin the file with the line `policy = 1`, without quotes; msrgate shows no text of a file without this line, because the text may be secret"
            }
            Self::LongLine { .. } => "write one entry on each line",
            Self::UnknownVersion(_) => "write `policy = 1`, or use a newer msrgate",
            Self::ListsNothing { .. } => {
                "write at least one value, or delete the key to mean all processors"
            }
            Self::SaidTwice { .. } => "keep one of the two keys, and delete the other",
            Self::NotForwardable { .. } => {
                "`mask`, `pin` and `sticky` work for IA32_STAR, IA32_LSTAR, IA32_CSTAR, IA32_FMASK, IA32_FS_BASE, IA32_GS_BASE, IA32_KERNEL_GS_BASE and IA32_SYSENTER_*; for others write \"allow\", \"deny\", \"ignore\" or a `register`"
            }
            Self::NotLoggable { .. } => {
                "write `log = \"first\"`, which records the first access of any MSR"
            }
            Self::UnknownNeedsAllow => "delete `unknown`, or write `default = \"allow\"`",
            Self::OverridesNothing(_) => {
                "delete `override = true`, because a narrower entry wins without it; to replace an included entry, write the same key as that entry"
            }
            Self::Cycle { .. } => "delete one of these includes",
            Self::Disagrees { .. } => {
                "write the same value in both files, or include a copy of the file without this setting (`msrgate policies NAME` prints a shipped policy)"
            }
            // Mistakes of all other kinds carry their own advice.
            _ => return None,
        })
    }
}

fn without_the_last(key: &str) -> String {
    let range = parse_msrs(key).ok().and_then(|msrs| msrs.as_range());
    match range {
        Some(range) if range.count() > 1 => {
            format!(
                "end the range before 0xffffffff: `\"{}..=0xfffffffe\"`",
                range.first()
            )
        }
        _ => "delete the entry".to_owned(),
    }
}

/// Returns advice on a word that is an action only in the other direction: the word to write for
/// `access` instead, then all words that are possible there.
fn other_direction(word: &str, access: Access) -> String {
    let first = match (word, access) {
        ("ignore", Access::Read) => "to answer a read, write `{ value = \"0x0\" }`; ",
        (_, Access::Read) => "use this action for `write`; ",
        ("value", Access::Write) => "to drop a write, write \"ignore\"; ",
        (_, Access::Write) => "use this action for `read`; ",
    };
    let all = match access {
        Access::Read => {
            "a read may be allow, deny, kill, inherit, value, handler, device or register"
        }
        Access::Write => {
            "a write may be allow, deny, kill, inherit, ignore, mask, pin, sticky, handler, device or register"
        }
    };
    format!("{first}{all}")
}

/// The name, in messages, of the limit on kinds of processors.
pub(crate) const PROCESSORS: &str = "kinds of processors that its `[[when]]`s tell apart";
pub(crate) const COMBINATIONS: &str = "combinations of `[[when]]`s that hold on the same processor";

const SINGLE_MSRS: &str = "name ranges instead of single MSRs: `\"0x200..=0x20f\" = \"r\"`";

/// The name of the limit [`MAX_ENTRIES_ON_ALL`](crate::limits::MAX_ENTRIES_ON_ALL) in messages.
pub(crate) const ENTRIES_ON_ALL: &str =
    "entries, each counted once for every kind of processor on which it holds";

/// Returns advice on how to write a policy with fewer of the parts that `what` names.
fn fewer(what: &str) -> &'static str {
    match what {
        "tokens of TOML" => {
            "name ranges instead of single MSRs, and write comments above paragraphs, not at each entry"
        }
        "tables and lists" => "write entries as words, such as `0x10 = \"rw\"`, in place of tables",
        "files" => "merge files that are always included together",
        "names in an `include`" => "name each file only once",
        "groups" => "write fewer entries for groups, or write ranges in place of groups",
        "`[[when]]`s" => {
            "merge `[[when]]`s with the same entries: each part of `cpu` may be a list"
        }
        PROCESSORS => "write ranges of families, models and steppings instead of single ones",
        ENTRIES_ON_ALL => {
            "name ranges instead of single MSRs, or write fewer `[[when]]`s: an entry outside of a `[[when]]` counts once for each kind of processor"
        }
        COMBINATIONS => {
            "write one `[[when]]` for each kind of processor, so that fewer `[[when]]`s hold on the same processor"
        }
        _ => SINGLE_MSRS,
    }
}
