//! Everything that can be wrong with a policy's text, with the places and what to do about it.

mod help;
mod report;

use thiserror::Error;

use crate::limits::MAX_MISTAKES;
use crate::policy::At;
pub(crate) use help::{COMBINATIONS, ENTRIES_ON_ALL, PROCESSORS};

use crate::selector::SelectorError;
use crate::source::{Place, Source};
use msrgate_filter::{Access, Accesses, MsrIndex};
use msrgate_program::{one_line, shown_name};

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
    #[error("{}", one_line(why))]
    Syntax {
        /// The reason.
        why: String,
        /// The advice: how to mend it.
        help: String,
    },
    /// A character that no editor shows, as it is.
    #[error("the text has an invisible character: {character}", character = one_line(character))]
    Hidden {
        /// The character, such as `U+202E`.
        character: String,
        /// How a string may have it.
        help: String,
    },
    /// A key stands twice in one table.
    #[error("`{key}` stands {}", twice(*.line, *.first), key = one_line(key))]
    DuplicateKey {
        /// The key.
        key: String,
        /// The advice: how to mend it.
        help: &'static str,
        /// The line of the second, counted from 1.
        line: u32,
        /// The line of the first, if it was found.
        first: Option<u32>,
    },
    /// The text does not say that it is a policy. Nothing in it may be quoted.
    #[error("this is not taken for a policy: {}", no_language(*.line))]
    NotAPolicy {
        /// The first line that is not TOML, if there is one.
        line: Option<u32>,
    },
    /// The texts are longer than [`MAX_BYTES`](crate::MAX_BYTES).
    #[error("the policy has {bytes} bytes with its includes; at most {limit} are allowed")]
    TooLong {
        /// How long they are, those that were not read left out.
        bytes: usize,
        /// How long it may be.
        limit: usize,
    },
    /// A line is longer than [`MAX_LINE`](crate::MAX_LINE).
    #[error("line {line} has {bytes} bytes; at most {limit} are allowed")]
    LongLine {
        /// The line, counted from 1.
        line: usize,
        /// How long it is.
        bytes: usize,
        /// How long it may be.
        limit: usize,
    },
    /// The text is within all limits, and its canonical form would not be.
    #[error("the canonical form would have {found} {what}; at most {limit} are allowed")]
    CanonicalForm {
        /// Of what: bytes, bytes in one line, tokens, or tables.
        what: &'static str,
        /// How many it would have.
        found: usize,
        /// How many there may be.
        limit: usize,
    },
    /// There is more of something than there may be.
    #[error("the policy has {found} {what}; at most {limit} are allowed")]
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
        /// The advice: what to write.
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
    /// A key that is known elsewhere in a policy.
    #[error("`{key}` stands {place}", key = one_line(key))]
    Misplaced {
        /// The key.
        key: String,
        /// Its place, and what belongs there.
        place: &'static str,
        /// The advice: where to write it.
        help: String,
    },
    /// A value of the wrong type.
    #[error("`{key}` is {found}, and should be {wanted}", key = one_line(key))]
    WrongType {
        /// The key.
        key: String,
        /// The type of its value.
        found: &'static str,
        /// The type that it should have.
        wanted: &'static str,
        /// The advice: what to write.
        help: String,
    },
    /// A word that is none of those that may stand here.
    #[error("`{key}` cannot be \"{word}\"", word = one_line(word), key = one_line(key))]
    UnknownWord {
        /// The word.
        word: String,
        /// The key whose value it is.
        key: String,
        /// The words there are, the nearest one first.
        help: String,
    },
    /// Text that is not a number, or a number that is too large.
    #[error("`{key}` cannot be `{text}`, which is not a number of at most {bits} bits", text = one_line(text), key = one_line(key))]
    BadNumber {
        /// The text.
        text: String,
        /// The key whose value it is.
        key: String,
        /// How many bits there are.
        bits: u32,
        /// The advice: what to write.
        help: String,
    },
    /// A range of families, models or steppings that ends before it begins, or has an end that is not a number.
    #[error("`{key}` cannot be `{text}`, which is not a range of numbers", text = one_line(text), key = one_line(key))]
    BadRange {
        /// The text.
        text: String,
        /// The key whose value it is.
        key: String,
        /// The advice: what to write.
        help: String,
    },
    /// A list of vendors, families, models or steppings with nothing in it: no processor is one of them.
    #[error("`{key}` is an empty list, so the `[[when]]` holds on no processor")]
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
    #[error("this msrgate does not know version {} of the policy language", one_line(.0))]
    UnknownVersion(String),
    /// A key of `[msrs]` that means no MSRs.
    #[error("{0}")]
    Msrs(SelectorError),
    /// An entry speaks of x2APIC registers, which no filter reaches (S3.1).
    #[error("`{text}` names x2APIC registers (0x800 to 0x8ff), which KVM never filters (S3.1)", text = one_line(text))]
    NamesX2apic {
        /// The key.
        text: String,
        /// The same entry without them.
        help: String,
    },
    /// MSR 0xffffffff is to have another action than the default (S3.5).
    #[error("`{}` gives MSR 0xffffffff another action than `default`, which alone decides it (S3.5)", one_line(.0))]
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
    #[error("`{word}` is not an action for a {access}")]
    OtherDirection {
        /// The action's word.
        word: &'static str,
        /// The direction it stands at.
        access: Access,
    },
    /// A table of a device that does not exist.
    #[error("no device is called `{name}`", name = one_line(name))]
    UnknownDevice {
        /// The name.
        name: String,
        /// The device there is.
        help: String,
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
    #[error("`{word}` cannot be used for {msr}: the VMM would write this register for the guest, which is not known to be safe", msr = one_line(msr))]
    NotForwardable {
        /// The action's word.
        word: &'static str,
        /// The first such MSR, with its name.
        msr: String,
    },
    /// All accesses of an MSR are to be logged, where that is not sound.
    #[error("`log = \"all\"` cannot be used for {msr}: the VMM would carry out each {access} for the guest, which is not known to be safe", msr = one_line(msr))]
    NotLoggable {
        /// The direction.
        access: Access,
        /// The first such MSR, with its name.
        msr: String,
    },
    /// Unknown MSRs are to be answered under default deny, where nobody is asked about them (S5.1).
    #[error(
        "`unknown` has no effect under `default = \"deny\"`, which refuses these accesses first (S5.1)"
    )]
    UnknownNeedsAllow,
    /// A gap that nobody knows of.
    #[error("`accept` cannot have \"{name}\", which is not the name of a gap", name = one_line(name))]
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
        help: String,
    },
    /// Something looser than a `final` entry.
    #[error("{} the {access} of {index}{} than the final entry `{fixed}`", loosens(key, decides.as_deref()), looser(decides.as_deref()), fixed = one_line(fixed))]
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
    #[error("`mode = \"audit\"` lets through what the final entry `{fixed}` of {file} refuses", fixed = one_line(fixed), file = one_line(file))]
    LiftedByAudit {
        /// The final entry's key.
        fixed: String,
        /// The entry's file.
        file: String,
    },
    /// An `override` with nothing to take the place of.
    #[error("`{}` overrides nothing: no included entry has exactly these MSRs", one_line(.0))]
    OverridesNothing(String),
    /// An included text that cannot be had.
    #[error("cannot include `{path}`: {why}", path = one_line(path), why = one_line(why))]
    Unreadable {
        /// The path as written.
        path: String,
        /// The reason.
        why: String,
        /// The advice, if it is known what to write.
        help: Option<String>,
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
    #[error("{file} has another `{key}` than the policy that includes it", file = one_line(file))]
    Disagrees {
        /// The setting.
        key: &'static str,
        /// The include's name.
        file: String,
    },
}

fn twice(line: u32, first: Option<u32>) -> String {
    match first {
        Some(first) if first == line => format!("twice on line {line}"),
        Some(first) => format!("twice, on line {first} and on line {line}"),
        None => format!("a second time on line {line}"),
    }
}

fn no_language(line: Option<u32>) -> String {
    match line {
        None => "it does not say `policy = 1`".to_owned(),
        Some(line) => {
            format!("line {line} is not TOML, and `policy = 1` does not stand above it")
        }
    }
}

/// The first part of a sentence that compares an entry with a final one.
fn loosens(key: &str, decides: Option<&str>) -> String {
    let key = one_line(key);
    match decides {
        None => format!("`{key}` is looser for"),
        Some(_) => format!("`{key}` leaves"),
    }
}

fn looser(decides: Option<&str>) -> String {
    decides.map_or_else(String::new, |decides| {
        format!(" to `{}`, which is looser", one_line(decides))
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
