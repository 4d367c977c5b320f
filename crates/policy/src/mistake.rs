//! Everything that can be wrong with a policy's text, with the places and what to do about it.

mod report;

use thiserror::Error;

use crate::limits::MAX_MISTAKES;
use crate::policy::At;
use crate::selector::SelectorError;
use crate::source::{Place, Source};
use msrgate_filter::{Access, Accesses, MsrIndex};
use msrgate_program::{one_line, shown, shown_name};

use report::Report;

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Mistake {
    pub(crate) wrong: MistakeKind,
    /// The places, the one that a one-line message names first.
    pub(crate) places: Vec<Label>,
}

/// A place in a text, with what is to be said of it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Label {
    pub(crate) at: At,
    pub(crate) says: Option<String>,
}

impl Label {
    pub(crate) const fn bare(at: At) -> Self {
        Self { at, says: None }
    }

    pub(crate) const fn saying(at: At, says: String) -> Self {
        Self {
            at,
            says: Some(says),
        }
    }
}

/// What is wrong. The fields named `key`, `text` and `word` quote the policy; messages have them as [`one_line`].
#[derive(Clone, Debug, Error, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum MistakeKind {
    /// The text is not TOML.
    #[error("not TOML: {}", one_line(.0))]
    Syntax(String),
    /// A character that no editor shows, as it is.
    #[error("{character} stands in the text, where nobody sees it", character = one_line(character))]
    Hidden {
        /// The character, such as `U+202E`.
        character: String,
        /// How a string may have it.
        help: String,
    },
    /// A key stands twice in one table.
    #[error("not TOML: `{key}` stands {}", twice(*.line, *.first), key = one_line(key))]
    DuplicateKey {
        /// The key.
        key: String,
        /// The line of the second, counted from 1.
        line: u32,
        /// The line of the first, if it was found.
        first: Option<u32>,
    },
    /// The text does not say that it is a policy. Nothing in it may be quoted.
    #[error("this is not taken for a policy: it does not say `policy = 1`{}", until(*.line))]
    NotAPolicy {
        /// The first line that is not TOML, if there is one.
        line: Option<u32>,
    },
    /// The texts are longer than [`MAX_BYTES`](crate::MAX_BYTES).
    #[error(
        "the policy has {bytes} bytes with its includes, more than the {limit} that one may have"
    )]
    TooLong {
        /// How long they are, those that were not read left out.
        bytes: usize,
        /// How long it may be.
        limit: usize,
    },
    /// A line is longer than [`MAX_LINE`](crate::MAX_LINE).
    #[error("line {line} has {bytes} bytes, more than the {limit} that one may have")]
    LongLine {
        /// The line, counted from 1.
        line: usize,
        /// How long it is.
        bytes: usize,
        /// How long it may be.
        limit: usize,
    },
    /// The text is within all limits, and its canonical form would not be.
    #[error(
        "the canonical form would have {found} {what}, more than the {limit} that a policy may have"
    )]
    CanonicalForm {
        /// Of what: bytes, bytes in one line, tokens, or tables.
        what: &'static str,
        /// How many it would have.
        found: usize,
        /// How many there may be.
        limit: usize,
    },
    /// There is more of something than there may be.
    #[error("the policy has {found} {what}, more than the {limit} that one may have")]
    TooMany {
        /// Of what: entries, files, tokens, groups, whens, or variants.
        what: &'static str,
        /// How many there are.
        found: usize,
        /// How many there may be.
        limit: usize,
    },
    /// A key that has to be there is not.
    #[error("`{key}` is missing")]
    MissingKey {
        /// The key.
        key: &'static str,
        /// What to write.
        help: &'static str,
    },
    /// A key that means nothing here.
    #[error("unknown key `{key}`", key = one_line(key))]
    UnknownKey {
        /// The key.
        key: String,
        /// The nearest known key, or all of them.
        help: String,
    },
    /// A value of the wrong type.
    #[error("`{key}` is {found}, and should be {wanted}", key = one_line(key))]
    WrongType {
        /// The key.
        key: String,
        /// What stands there.
        found: &'static str,
        /// What should.
        wanted: &'static str,
    },
    /// A word that is none of those that may stand here.
    #[error("`{word}` is not a word for `{key}`", word = one_line(word), key = one_line(key))]
    UnknownWord {
        /// The word.
        word: String,
        /// The key whose value it is.
        key: String,
        /// The words there are, the nearest one first.
        help: String,
    },
    /// A number that is none, or too large.
    #[error("`{text}` is no number of {bits} bits for `{key}`", text = one_line(text), key = one_line(key))]
    BadNumber {
        /// What stands there.
        text: String,
        /// The key whose value it is.
        key: String,
        /// How many bits there are.
        bits: u32,
    },
    /// A range of families, models or steppings that is none, or ends before it begins.
    #[error("`{text}` is no range of numbers for `{key}`", text = one_line(text), key = one_line(key))]
    BadRange {
        /// What stands there.
        text: String,
        /// The key whose value it is.
        key: String,
    },
    /// A list of vendors, families, models or steppings with nothing in it: no processor is one of them.
    #[error("`{key}` lists nothing, so that this holds on no processor")]
    ListsNothing {
        /// The key whose value it is.
        key: &'static str,
    },
    /// A family, model or stepping that CPUID has no room for.
    #[error("no processor has the {key} {number:#x}")]
    NoProcessor {
        /// What stands there.
        number: u32,
        /// The key whose value it is.
        key: &'static str,
        /// What there may be.
        help: String,
    },
    /// A vendor that no processor names: it has not twelve bytes, or is a known one misspelt.
    #[error("no processor's vendor is `{name}`: CPUID leaf 0 spells it in twelve characters", name = one_line(name))]
    NoVendor {
        /// The name.
        name: String,
        /// Known ones, the nearest first.
        help: String,
    },
    /// A language version this program does not know.
    #[error("policy language {} is not known", one_line(.0))]
    UnknownVersion(String),
    /// A key of `[msrs]` that means no MSRs.
    #[error("{0}")]
    Msrs(SelectorError),
    /// An entry speaks of x2APIC registers, which no filter reaches (S3.1).
    #[error("`{text}` speaks of x2APIC registers, which KVM never filters (S3.1)", text = one_line(text))]
    NamesX2apic {
        /// The key.
        text: String,
        /// The same entry without them.
        help: String,
    },
    /// MSR 0xffffffff is to have another action than the default (S3.5).
    #[error("`{}` gives MSR 0xffffffff its own action, and only `default` reaches it (S3.5)", one_line(.0))]
    NamesTheLastMsr(String),
    /// A table entry that leaves out a direction.
    #[error("`{key}` does not say what happens to a {access}", key = one_line(key))]
    MissingDirection {
        /// The entry's key.
        key: String,
        /// The direction.
        access: Access,
    },
    /// Two keys of an entry that both say what happens.
    #[error("`{key}` has `{one}` and `{other}`, which both say what happens", key = one_line(key), one = one_line(one), other = one_line(other))]
    SaidTwice {
        /// The entry's key.
        key: String,
        /// One of them.
        one: String,
        /// Another.
        other: String,
    },
    /// An action for the other direction.
    #[error("`{word}` is no action for a {access}")]
    OtherDirection {
        /// The action's word.
        word: &'static str,
        /// The direction it stands at.
        access: Access,
    },
    /// A device that an entry names and the policy does not set up.
    #[error("`{key}` names the device `{device}`, which is not set up", key = one_line(key), device = one_line(device))]
    DeviceNotSetUp {
        /// The entry's key.
        key: String,
        /// The device.
        device: String,
    },
    /// A device at an MSR that is none of its own.
    #[error("the device `{device}` has no register at `{key}`", key = one_line(key), device = one_line(device))]
    DeviceElsewhere {
        /// The entry's key.
        key: String,
        /// The device.
        device: String,
        /// Where its registers are.
        help: &'static str,
    },
    /// An action that carries accesses to the real register, where that is not sound.
    #[error("`{word}` needs the write of {msr} to be forwarded, which is not known to be sound", msr = one_line(msr))]
    NotForwardable {
        /// The action's word.
        word: &'static str,
        /// The first such MSR, with its name.
        msr: String,
    },
    /// All accesses of an MSR are to be logged, where that is not sound.
    #[error(
        "`log = \"all\"` needs the {access} of {msr} to be forwarded, which is not known to be sound", msr = one_line(msr))]
    NotLoggable {
        /// The direction.
        access: Access,
        /// The first such MSR, with its name.
        msr: String,
    },
    /// Unknown MSRs are to be answered under default deny, where nobody is asked about them (S5.1).
    #[error(
        "`unknown` has no effect under `default = \"deny\"`: a refused access is never looked up (S5.1)"
    )]
    UnknownNeedsAllow,
    /// A gap that nobody knows of.
    #[error("no gap in enforcement is called `{name}`", name = one_line(name))]
    UnknownGap {
        /// The name.
        name: String,
        /// The names there are.
        help: String,
    },
    /// Two entries that overlap in part, or are equal, and disagree.
    #[error("`{first}` and `{second}` {how}, and disagree on {accesses}", accesses = both_or(*accesses), first = one_line(first), second = one_line(second), how = one_line(how))]
    Conflict {
        /// The key that comes first.
        first: String,
        /// The other.
        second: String,
        /// How they meet.
        how: String,
        /// On which directions they disagree.
        accesses: Accesses,
        /// What to do.
        help: &'static str,
    },
    /// Something looser than a `final` entry.
    #[error("`{key}` loosens the {access} of {index}{}, and `{fixed}` is final", decided_by(decides.as_deref()), key = one_line(key), fixed = one_line(fixed))]
    Loosened {
        /// The key of the entry that is looser, or that took the final entry's place.
        key: String,
        /// The final entry's key.
        fixed: String,
        /// An MSR it loosens.
        index: MsrIndex,
        /// In which direction.
        access: Access,
        /// What decides the access now, where the entry leaves that to something else.
        decides: Option<String>,
        /// What to do.
        help: String,
    },
    /// A policy in audit over an included final entry.
    #[error("`mode = \"audit\"` lifts what `{fixed}` of {file} refuses, and `{fixed}` is final", fixed = one_line(fixed), file = one_line(file))]
    LiftedByAudit {
        /// The final entry's key.
        fixed: String,
        /// The entry's file.
        file: String,
    },
    /// An `override` with nothing to take the place of.
    #[error("`{}` overrides nothing: no include speaks of exactly these MSRs", one_line(.0))]
    OverridesNothing(String),
    /// An included text that cannot be had.
    #[error("cannot include `{path}`: {why}", path = one_line(path), why = one_line(why))]
    Unreadable {
        /// The path as written.
        path: String,
        /// Why not.
        why: String,
    },
    /// A text that includes itself, through others or not.
    #[error("`{path}` includes itself: {way}", path = one_line(path), way = one_line(way))]
    Cycle {
        /// The path as written.
        path: String,
        /// From where through what to where.
        way: String,
    },
    /// A setting of an include that the policy does not share.
    #[error("`{key}` is not what the including policy says")]
    Disagrees {
        /// The setting.
        key: &'static str,
    },
}

impl MistakeKind {
    /// What to do about it, where that is not plain.
    #[must_use]
    pub fn help(&self) -> Option<String> {
        let plain = match self {
            Self::Msrs(error) => return Some(error.help()),
            Self::UnknownKey { help, .. }
            | Self::UnknownWord { help, .. }
            | Self::NamesX2apic { help, .. }
            | Self::Hidden { help, .. }
            | Self::NoVendor { help, .. }
            | Self::NoProcessor { help, .. }
            | Self::UnknownGap { help, .. }
            | Self::Loosened { help, .. } => return Some(shown(help)),
            Self::LiftedByAudit { file, .. } => {
                let file = one_line(file);
                return Some(format!(
                    "delete the mode, or have {file} say `mode = \"audit\"`, too: only its own file puts a final entry in audit"
                ));
            }
            Self::MissingDirection { access, .. } => {
                return Some(format!(
                    "add `{access} = \"allow\"`, `{access} = \"deny\"`, or `{access} = \"inherit\"` to take what a wider entry or the default says"
                ));
            }
            Self::DeviceNotSetUp { device, .. } => {
                return Some(format!("add a table `[device.{}]`", one_line(device)));
            }
            Self::MissingKey { help, .. }
            | Self::DeviceElsewhere { help, .. }
            | Self::Conflict { help, .. } => help,
            Self::TooLong { .. } => SINGLE_MSRS,
            Self::CanonicalForm { .. } => {
                "leave out what stands twice, or keep the text as it is: its size is no mistake elsewhere"
            }
            Self::TooMany { what, .. } => fewer(what),
            Self::NotAPolicy { .. } => {
                "write `policy = 1` at its top; until then no message shows any of its text, which may be a secret"
            }
            Self::LongLine { .. } => "write one entry a line",
            Self::UnknownVersion(_) => "this msrgate knows `policy = 1`; a newer one may know more",
            Self::BadNumber { .. } => {
                "write digits, or `0x` and hexadecimal digits; above 2^63 as a string: \"0xffffffffffffffff\""
            }
            Self::BadRange { .. } => "write the lower end first, as in \"0x6a..=0x6f\"",
            Self::ListsNothing { .. } => {
                "name one, or leave the key out where all processors are meant"
            }
            Self::NamesTheLastMsr(_) => "end the range at 0xfffffffe",
            Self::SaidTwice { .. } => "keep one of the two",
            Self::OtherDirection {
                access: Access::Read,
                ..
            } => "a read takes allow, deny, kill, inherit, value, handler, device or register",
            Self::OtherDirection {
                access: Access::Write,
                ..
            } => {
                "a write takes allow, deny, kill, inherit, ignore, mask, pin, sticky, handler, device or register"
            }
            Self::NotForwardable { .. } => {
                "it is known of STAR, LSTAR, CSTAR, FMASK, FS_BASE, GS_BASE, KERNEL_GS_BASE and SYSENTER_*; elsewhere use allow, deny, ignore or register"
            }
            Self::NotLoggable { .. } => {
                "use `log = \"first\"`, which sees each access once, at any MSR"
            }
            Self::DuplicateKey { .. } => {
                "keep one of the two: an entry says both directions at once, by a word or as a table with `read` and `write`"
            }
            Self::UnknownNeedsAllow => "delete it, or write `default = \"allow\"`",
            Self::OverridesNothing(_) => {
                "delete `override = true`; a strict subset wins without it"
            }
            Self::Disagrees { .. } => {
                "an include only adds entries: delete the setting there, or say the same in both"
            }
            _ => return None,
        };
        Some(plain.to_owned())
    }
}

const SINGLE_MSRS: &str = "name ranges instead of single MSRs: `\"0x200..=0x20f\" = \"r\"`";

/// The name of the limit [`MAX_ENTRIES_ON_ALL`](crate::limits::MAX_ENTRIES_ON_ALL) in messages.
pub(crate) const ENTRIES_ON_ALL: &str = "entries, each counted for every kind of processor that its `when`s tell apart and on which it holds";

/// The way to have fewer of them.
fn fewer(what: &str) -> &'static str {
    match what {
        "tokens of TOML" => {
            "name ranges instead of single MSRs, and write comments above paragraphs, not at each entry"
        }
        "tables and lists" => "write entries as words: `0x10 = \"rw\"` takes no table",
        "files" => "join files that are always included together",
        "names in an `include`" => "name each file once",
        "groups" => "name each group once, or write the ranges that are meant",
        "whens" => "join `[[when]]`s that say the same: each part of `cpu` may be a list",
        "processors that its `when`s tell apart" => {
            "write ranges of families, models and steppings instead of single ones"
        }
        ENTRIES_ON_ALL => {
            "name ranges instead of single MSRs, or let fewer `[[when]]`s differ: every entry without one counts for each"
        }
        "ways in which its `when`s hold" => {
            "let fewer `[[when]]`s hold on the same processors: write one for each kind of processor"
        }
        _ => SINGLE_MSRS,
    }
}

fn twice(line: u32, first: Option<u32>) -> String {
    match first {
        Some(first) if first == line => format!("twice on line {line}"),
        Some(first) => format!("on line {first}, and again on line {line}"),
        None => format!("a second time on line {line}"),
    }
}

fn until(line: Option<u32>) -> String {
    line.map_or(String::new(), |line| {
        format!(" before line {line}, which is not TOML")
    })
}

/// The part of a sentence that names what decides an access.
fn decided_by(decides: Option<&str>) -> String {
    decides.map_or_else(String::new, |decides| {
        format!(", which `{}` decides now", one_line(decides))
    })
}

fn both_or(accesses: Accesses) -> &'static str {
    match accesses {
        Accesses::Read => "reads",
        Accesses::Write => "writes",
        Accesses::Both => "reads and writes",
    }
}

impl Mistake {
    /// What is wrong.
    #[must_use]
    pub const fn wrong(&self) -> &MistakeKind {
        &self.wrong
    }
}

/// All mistakes of one policy, in the order of its texts.
#[derive(Debug, Error)]
#[error("{name} has {}", count(*total))]
pub struct Mistakes {
    name: String,
    sources: Vec<Source>,
    shown: Vec<Mistake>,
    total: usize,
    reports: Vec<Report>,
}

fn count(mistakes: usize) -> String {
    match mistakes {
        1 => "a mistake".to_owned(),
        MAX_MISTAKES.. => format!("{MAX_MISTAKES} mistakes or more"),
        n => format!("{n} mistakes"),
    }
}

impl Mistakes {
    /// More than these are counted, not shown: nobody reads them, and each costs a look through
    /// the whole text.
    const SHOWN: usize = 50;

    pub(crate) fn new(sources: Vec<Source>, mut mistakes: Vec<Mistake>) -> Self {
        let place = |mistake: &Mistake| {
            let first = mistake.places.first();
            first.map(|label| (label.at.source(), label.at.span().offset()))
        };
        mistakes.sort_by_key(place);
        let total = mistakes.len();
        mistakes.truncate(Self::SHOWN);
        Self {
            name: shown_name(sources[0].name()),
            reports: report::reports(&sources, &mistakes),
            sources,
            shown: mistakes,
            total,
        }
    }

    /// How many there are, those not kept included. After a thousand, entries were not looked at.
    #[must_use]
    pub const fn total(&self) -> usize {
        self.total
    }

    /// The first of them, at most 50.
    #[must_use]
    pub fn mistakes(&self) -> &[Mistake] {
        &self.shown
    }

    /// Where a mistake is, if it is at one place: the text and the place in it.
    #[must_use]
    pub fn place(&self, mistake: &Mistake) -> Option<(&Source, Place)> {
        let first = mistake.places.first()?;
        Some(self.place_of(first))
    }

    /// The other places that a mistake is about, such as the second of two entries that disagree, each with what is to
    /// be said of it.
    pub fn other_places<'m>(
        &'m self,
        mistake: &'m Mistake,
    ) -> impl Iterator<Item = (&'m Source, Place, Option<&'m str>)> {
        mistake.places.iter().skip(1).map(|label| {
            let (source, place) = self.place_of(label);
            (source, place, label.says.as_deref())
        })
    }

    fn place_of(&self, label: &Label) -> (&Source, Place) {
        let source = &self.sources[label.at.source().number()];
        (source, source.place(label.at.span()))
    }
}
