//! The mistakes that a policy's text may have, with their places and advice.

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

/// One mistake in a policy.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Mistake {
    pub(crate) kind: MistakeKind,
    /// The places that the mistake is about. A one-line message names the first place.
    pub(crate) places: Vec<Label>,
}

/// A place in a policy's text, with a remark about the place.
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

/// The kind of a mistake, with its details. The fields `key`, `text` and `word` quote the policy;
/// messages show these texts through [`one_line`].
#[derive(Clone, Debug, Error, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum MistakeKind {
    /// The text is not TOML.
    #[error("{}", one_line(why))]
    Syntax {
        /// The reason for which the text is not TOML.
        why: String,
        /// The advice: how to correct the text.
        help: String,
    },
    /// A character that editors do not show stands in the text unescaped.
    #[error("the text has an invisible character: {character}", character = one_line(character))]
    Hidden {
        /// The invisible character, such as `U+202E`.
        character: String,
        /// The advice: how to write the character in a string.
        help: String,
    },
    /// A key occurs twice in one table.
    #[error("`{key}` is written {}", twice(*.line, *.first), key = one_line(key))]
    DuplicateKey {
        /// The key that occurs twice.
        key: String,
        /// The advice: how to correct the text.
        help: &'static str,
        /// The line of the second occurrence, counted from 1.
        line: u32,
        /// The line of the first occurrence, if it was found.
        first: Option<u32>,
    },
    /// The text does not say `policy = 1`, so it may be no policy. Messages must not quote the
    /// text, which may be secret.
    #[error("this text is not a policy: {}", no_language(*.line))]
    NotAPolicy {
        /// The first line that is not TOML, if there is one.
        line: Option<u32>,
    },
    /// A policy and its includes are longer together than [`MAX_BYTES`](crate::MAX_BYTES).
    #[error("the policy has {bytes} bytes with its includes; at most {limit} are allowed")]
    TooLong {
        /// The length of the texts that were read, in bytes.
        bytes: usize,
        /// The maximum length of all texts together, in bytes.
        limit: usize,
    },
    /// A line is longer than [`MAX_LINE`](crate::MAX_LINE).
    #[error("line {line} has {bytes} bytes; at most {limit} are allowed")]
    LongLine {
        /// The number of the long line, counted from 1.
        line: usize,
        /// The length of the line, in bytes.
        bytes: usize,
        /// The maximum length of a line, in bytes.
        limit: usize,
    },
    /// The text is within all limits, but its canonical form would exceed a limit.
    #[error("the canonical form would have {found} {what}; at most {limit} are allowed")]
    CanonicalForm {
        /// The unit in which `found` and `limit` count: bytes, bytes in one line, tokens, or
        /// tables.
        what: &'static str,
        /// The size of the canonical form, in the unit that `what` names.
        found: usize,
        /// The maximum size of a policy, in the unit that `what` names.
        limit: usize,
    },
    /// A policy has more entries, files, tokens or other parts than a limit allows.
    #[error("the policy has {found} {what}; at most {limit} are allowed")]
    TooMany {
        /// The parts that are counted: entries, files, tokens, groups, whens, or variants.
        what: &'static str,
        /// The number of parts of the kind `what` in the policy.
        found: usize,
        /// The maximum number of parts of the kind `what`.
        limit: usize,
    },
    /// A required key is missing.
    #[error("`{key}` is missing")]
    MissingKey {
        /// The key that is missing.
        key: &'static str,
        /// The advice: what to write for the missing key.
        help: &'static str,
    },
    /// A key is unknown at its place in the policy.
    #[error("unknown key `{key}`", key = one_line(key))]
    UnknownKey {
        /// The key that is unknown.
        key: String,
        /// The advice: the nearest known key, or all known keys.
        help: String,
    },
    /// The key is known, but belongs elsewhere in a policy.
    #[error("`{key}` is written {place}", key = one_line(key))]
    Misplaced {
        /// The key that stands at a wrong place.
        key: String,
        /// The key's place in the text, and the keys that belong there.
        place: &'static str,
        /// The advice: the place at which to write the key.
        help: String,
    },
    /// The value of a key has the wrong type.
    #[error("`{key}` is {found}, but must be {wanted}", key = one_line(key))]
    WrongType {
        /// The key whose value has the wrong type.
        key: String,
        /// The type of the value.
        found: &'static str,
        /// The type that the value should have.
        wanted: &'static str,
        /// The advice: what to write instead.
        help: String,
    },
    /// The value of a key is a word that is not allowed there.
    #[error("`{key}` cannot be \"{word}\"", word = one_line(word), key = one_line(key))]
    UnknownWord {
        /// The word that is not allowed.
        word: String,
        /// The key that has this word as its value.
        key: String,
        /// The allowed words, the nearest first.
        help: String,
    },
    /// Text is not a number, or the number is too large.
    #[error("`{key}` cannot be `{text}`, which is not a number of at most {bits} bits", text = one_line(text), key = one_line(key))]
    BadNumber {
        /// The text that is not a number of at most `bits` bits.
        text: String,
        /// The key that has this text as its value.
        key: String,
        /// The number of bits that the number may have.
        bits: u32,
        /// The advice: what to write instead.
        help: String,
    },
    /// A range of families, models or steppings ends before it begins, or has an end that is not a
    /// number.
    #[error("`{key}` cannot be `{text}`, which is not a range of numbers", text = one_line(text), key = one_line(key))]
    BadRange {
        /// The text that is not a range of numbers.
        text: String,
        /// The key that has this text as its value.
        key: String,
        /// The advice: what to write instead.
        help: String,
    },
    /// A list of vendors, families, models or steppings is empty, so that no processor matches.
    #[error("`{key}` is an empty list, so the `[[when]]` holds on no processor")]
    ListsNothing {
        /// The key that has the empty list as its value.
        key: &'static str,
    },
    /// A family, model or stepping is too large for CPUID.
    #[error("no processor has the {key} {number:#x}")]
    NoProcessor {
        /// The number that is too large, as the policy states it.
        number: u32,
        /// The key that has this number as its value.
        key: &'static str,
        /// The advice, which tells the possible numbers.
        help: String,
    },
    /// No processor has this vendor: the name is not twelve bytes long, or is a misspelt name of a
    /// known vendor.
    #[error("no processor has the vendor `{name}`: CPUID leaf 0 spells a vendor in twelve characters", name = one_line(name))]
    NoVendor {
        /// The name that the policy writes as a vendor.
        name: String,
        /// The advice, which lists the known vendors, the nearest first.
        help: String,
    },
    /// The policy states this version of the language, which this msrgate does not know.
    #[error("this msrgate does not know version {} of the policy language", one_line(.0))]
    UnknownVersion(String),
    /// A key of `[msrs]` does not name MSRs.
    #[error("{0}")]
    Msrs(SelectorError),
    /// An entry names x2APIC registers, which no filter reaches (S3.1).
    #[error("`{text}` names x2APIC registers (0x800 to 0x8ff), which KVM never filters (S3.1)", text = one_line(text))]
    NamesX2apic {
        /// The key of the entry that names x2APIC registers.
        text: String,
        /// The advice: the same entry without x2APIC registers.
        help: String,
    },
    /// An entry gives MSR 0xffffffff another action than the default (S3.5).
    #[error("`{}` gives MSR 0xffffffff an action other than `default`, but only `default` decides this MSR (S3.5)", one_line(.0))]
    NamesTheLastMsr(String),
    /// An entry that is a table has no action for reads, or no action for writes.
    #[error("`{key}` does not say what happens to a {access}", key = one_line(key))]
    MissingDirection {
        /// The key of the entry that lacks a direction.
        key: String,
        /// The direction, read or write, for which the entry has no action.
        access: Access,
    },
    /// Two keys of an entry both set an action.
    #[error("`{key}` has both `{one}` and `{other}`, and each of them sets an action", key = one_line(key), one = one_line(one), other = one_line(other))]
    SaidTwice {
        /// The key, in `[msrs]`, of the entry that has both keys.
        key: String,
        /// The first of the two keys that set the action.
        one: String,
        /// The second of the two keys that set the action.
        other: String,
    },
    /// An entry gives a direction an action that only the other direction can have.
    #[error("`{word}` is not an action for a {access}")]
    OtherDirection {
        /// The word for the action, such as `ignore`.
        word: &'static str,
        /// The direction for which the policy uses the action.
        access: Access,
    },
    /// An entry names a device that does not exist.
    #[error("no device is called `{name}`", name = one_line(name))]
    UnknownDevice {
        /// The name in the policy that no device has.
        name: String,
        /// The advice, which names the device that exists.
        help: String,
    },
    /// An entry names a device that the policy does not set up.
    #[error("`{key}` names the device `{device}`, but the policy does not set up this device", key = one_line(key), device = one_line(device))]
    DeviceNotSetUp {
        /// The key of the entry that names the device.
        key: String,
        /// The name of the device that is not set up.
        device: String,
    },
    /// An entry names a device at an MSR that does not belong to the device.
    #[error("the device `{device}` has no register at `{key}`", key = one_line(key), device = one_line(device))]
    DeviceElsewhere {
        /// The key of the entry that names the device.
        key: String,
        /// The name of the device that has no register at these MSRs.
        device: String,
        /// The advice, which names the MSRs of the device's registers.
        help: &'static str,
    },
    /// An entry has an action that makes the gate write the real register for the guest, which is
    /// not known to be safe for this MSR.
    #[error("`{word}` cannot be used for {msr}: the VMM would write this register for the guest, which is not known to be safe", msr = one_line(msr))]
    NotForwardable {
        /// The word for the action that would make the gate write the register.
        word: &'static str,
        /// The first MSR that the gate must not write, with its name.
        msr: String,
    },
    /// The entry logs all accesses of an MSR, so the gate would have to carry them out for the
    /// guest, which is not known to be safe for this MSR.
    #[error("`log = \"all\"` cannot be used for {msr}: the VMM would carry out each {access} for the guest, which is not known to be safe", msr = one_line(msr))]
    NotLoggable {
        /// The direction of the accesses that the gate would have to carry out.
        access: Access,
        /// The first MSR whose accesses the gate must not carry out, with its name.
        msr: String,
    },
    /// `unknown` is set although the default is deny: then the filter refuses the access, and KVM
    /// does not report an unknown MSR (S5.1).
    #[error(
        "`unknown` has no effect under `default = \"deny\"`, which refuses accesses of unknown MSRs first (S5.1)"
    )]
    UnknownNeedsAllow,
    /// `accept` has a word that is neither a gap nor a warning.
    #[error("`accept` cannot name \"{name}\", which is neither a gap nor a warning", name = one_line(name))]
    UnknownAccepted {
        /// The word in `accept` that is neither a gap nor a warning.
        name: String,
        /// The advice, which lists the known words.
        help: String,
    },
    /// Two entries disagree, and overlap in part or name the same MSRs.
    #[error("`{first}` and `{second}` {how}, but have different actions for {accesses}", accesses = both_or(*accesses), first = one_line(first), second = one_line(second), how = one_line(how))]
    Conflict {
        /// The key of the entry that comes first.
        first: String,
        /// The key of the entry that comes second.
        second: String,
        /// The relation of the two entries' MSRs, such as `overlap in part`.
        how: String,
        /// The directions in which the two entries disagree.
        accesses: Accesses,
        /// The advice: how to correct the policy.
        help: String,
    },
    /// An entry is looser than a `final` entry.
    #[error("{} {access}s of {index}{} than the final entry `{fixed}`", loosens(key, decides.as_deref()), looser(decides.as_deref()), fixed = one_line(fixed))]
    Loosened {
        /// The key of the entry that is looser, or that replaced the final entry.
        key: String,
        /// The key of the final entry that forbids the looser action.
        fixed: String,
        /// An MSR for which the entry is looser.
        index: MsrIndex,
        /// The direction in which the entry is looser.
        access: Access,
        /// The key of the entry, or `default`, that decides the access now, if the looser entry
        /// inherits.
        decides: Option<String>,
        /// The advice: how to correct the policy.
        help: String,
    },
    /// The policy has `mode = "audit"`, which would lift the refusals of an included final entry.
    #[error("`mode = \"audit\"` lets through what the final entry `{fixed}` of {file} refuses", fixed = one_line(fixed), file = one_line(file))]
    LiftedByAudit {
        /// The key of the final entry, whose refusals audit mode would lift.
        fixed: String,
        /// The file that contains the final entry.
        file: String,
    },
    /// An `override` has no included entry to replace.
    #[error("`{}` overrides nothing: no included entry has exactly these MSRs", one_line(.0))]
    OverridesNothing(String),
    /// An included text cannot be read.
    #[error("cannot include `{path}`: {why}", path = one_line(path), why = one_line(why))]
    Unreadable {
        /// The path of the included text, as the `include` writes it.
        path: String,
        /// The reason for which the text cannot be read.
        why: String,
        /// The advice, if there is any.
        help: Option<String>,
    },
    /// A text includes itself, directly or through others.
    #[error("`{path}` includes itself: {way}", path = one_line(path), way = one_line(way))]
    Cycle {
        /// The path of the included text, as the `include` writes it.
        path: String,
        /// The chain of includes, from the text back to itself.
        way: String,
    },
    /// An included file and the policy that includes it have different values of a setting.
    #[error("{file} and the policy that includes it have different values of `{key}`", file = one_line(file))]
    Disagrees {
        /// The key of the setting that has two values.
        key: &'static str,
        /// The name of the included file.
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
        None => "it has no line `policy = 1`".to_owned(),
        Some(line) => {
            format!("line {line} is not TOML, and no line above it is `policy = 1`")
        }
    }
}

/// Returns the first part of a sentence that compares an entry with a final entry.
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
    /// The kind of the mistake, with its details.
    #[must_use]
    pub const fn kind(&self) -> &MistakeKind {
        &self.kind
    }
}

/// All mistakes of one policy, in the order of its files.
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
    /// The number of mistakes that are kept and shown. Further mistakes are only counted, because
    /// finding the line of a mistake takes a search through the whole text.
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

    /// The number of mistakes, including those that [`Self::mistakes`] leaves out. After 1,000
    /// mistakes, further entries were not checked.
    #[must_use]
    pub const fn total(&self) -> usize {
        self.total
    }

    /// The first mistakes, at most 50.
    #[must_use]
    pub fn mistakes(&self) -> &[Mistake] {
        &self.shown
    }

    /// Returns the text and the place that a mistake is about. `None`: the mistake has no place.
    #[must_use]
    pub fn place(&self, mistake: &Mistake) -> Option<(&Source, Place)> {
        let first = mistake.places.first()?;
        Some(self.place_of(first))
    }

    /// Returns the further places that a mistake is about, each with a remark: for example the
    /// second of two entries that disagree.
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
