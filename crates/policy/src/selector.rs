//! Selectors, by which people name MSRs: a name, an index, a range, or a group.

mod index;

use std::fmt;

use msrgate_filter::MsrIndex;
use msrgate_program::{MsrRange, MsrSet, one_line};

use crate::layout;
use crate::nearest::one_of;
use crate::registers::{self, Named, Register};
use crate::source::quoted;

pub use index::index_readings;
use index::parse_index;

/// The reason for which a text does not name MSRs.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum SelectorError {
    /// No register has this name.
    UnknownName {
        /// The name that no register has.
        name: String,
        /// Names that look similar, the likeliest first.
        near: Vec<&'static str>,
    },
    /// No group has this name.
    UnknownGroup(String),
    /// The name means different MSRs on different processors.
    AmbiguousName {
        /// The name that means several MSRs.
        name: String,
        /// The meanings of the name, such as `0xc1 IA32_PMC0`.
        candidates: Vec<String>,
    },
    /// A name contains `*` or `?`, which are not wildcards here.
    Wildcard(String),
    /// The text has several names or indices.
    List(String),
    /// The text begins like an index, but is not one.
    BadIndex {
        /// The text that is not an index.
        text: String,
        /// The reason for which the text is not an index.
        why: &'static str,
        /// Valid indices or ranges that may have been meant, the likeliest first.
        instead: Vec<String>,
    },
    /// A range is not written with `..=`, or lacks an end.
    OpenRange {
        /// The text that is not a whole range.
        text: String,
        /// Valid ranges that may have been meant, the likeliest first.
        instead: Vec<String>,
    },
    /// The end of a range is below its start.
    BackwardRange {
        /// The text of the range whose end is below its start.
        text: String,
        /// The range from the lower end to the upper one.
        instead: String,
    },
}

impl fmt::Display for SelectorError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnknownName { name, .. } => write!(f, "no MSR is called `{}`", one_line(name)),
            Self::UnknownGroup(name) => write!(f, "no group is called `{}`", one_line(name)),
            Self::AmbiguousName { name, candidates } => {
                let candidates = one_line(&candidates.join(" or "));
                let name = one_line(name);
                write!(f, "`{name}` is the name of several MSRs: {candidates}")
            }
            Self::Wildcard(text) => write!(
                f,
                "`{}` has a wildcard, but the name of an MSR cannot have one",
                one_line(text)
            ),
            Self::List(text) => write!(
                f,
                "`{}` is a list: an entry is for one MSR, one range or one group",
                one_line(text)
            ),
            Self::BadIndex { text, why, .. } => {
                write!(f, "`{}` is not an MSR index: {why}", one_line(text))
            }
            Self::OpenRange { text, .. } => write!(
                f,
                "`{}` is not a range: a range has `..=` between its first and its last MSR",
                one_line(text)
            ),
            Self::BackwardRange { text, .. } => {
                write!(f, "the range `{}` ends before it begins", one_line(text))
            }
        }
    }
}

impl std::error::Error for SelectorError {}

impl SelectorError {
    /// Returns advice on how to correct the text, as a sentence.
    #[must_use]
    pub fn help(&self) -> String {
        self.help_quoting(str::to_owned)
    }

    /// Returns advice on how to correct the text in a policy, whose keys have quotes where TOML
    /// requires them.
    pub(crate) fn help_in_policy(&self) -> String {
        if matches!(self, Self::UnknownName { near, .. } if near.is_empty()) {
            return "find the register with `msrgate msr WORD`; an entry looks like `IA32_PAT = \"r\"`"
                .to_owned();
        }
        self.help_quoting(layout::key)
    }

    fn help_quoting(&self, quote: fn(&str) -> String) -> String {
        let code = |text: &str| format!("`{}`", one_line(&quote(text)));
        match self {
            Self::UnknownName { near, .. } if near.is_empty() => {
                "find the register with `msrgate msr WORD`, or write its index, such as `0x8b`"
                    .to_owned()
            }
            Self::UnknownName { near, .. } => {
                let near: Vec<_> = near.iter().map(|name| code(name)).collect();
                format!("did you mean {}?", near.join(" or "))
            }
            Self::UnknownGroup(name) => {
                let names: Vec<_> = registers::groups().iter().map(|group| group.name).collect();
                one_of(name, &names, "a group", '`')
            }
            Self::AmbiguousName { .. } => {
                "write the index of the register that you mean".to_owned()
            }
            Self::Wildcard(text) => match group_in(text) {
                Some(group) => format!("write the group {}, or a range", code(group)),
                None => format!(
                    "write a range, such as {}, or a group, such as {}; `default` decides all MSRs that no entry names",
                    code("0x200..=0x20f"),
                    code("@mtrr")
                ),
            },
            Self::List(_) => "write one entry for each, on its own line".to_owned(),
            Self::BadIndex { instead, .. } => match &instead[..] {
                [] => "an index looks like `0xc0000080`, a name like `IA32_EFER`".to_owned(),
                several => written(several, code),
            },
            Self::OpenRange { instead, .. } => match &instead[..] {
                [] => format!("a range looks like {}", code("0x200..=0x20f")),
                several => written(several, code),
            },
            Self::BackwardRange { instead, .. } => format!("write {}", code(instead)),
        }
    }
}

/// Returns the proposed texts as one phrase, the likeliest first.
fn written(instead: &[String], code: impl Fn(&str) -> String) -> String {
    match instead {
        [meant, hexadecimal] => format!(
            "write {}; if the digits are hexadecimal already, write {}",
            code(meant),
            code(hexadecimal)
        ),
        several => {
            let several: Vec<_> = several.iter().map(|one| code(one)).collect();
            format!("write {}", several.join(" or "))
        }
    }
}

/// Finds the group whose name, without its `@`, is part of a text.
fn group_in(text: &str) -> Option<&'static str> {
    let text = text.to_lowercase();
    let mut groups = registers::groups().iter().map(|group| group.name);
    groups.find(|name| text.contains(name.trim_start_matches('@')))
}

/// Parses a selector: a name such as `IA32_EFER`, an index such as `0xc0000080`, a range such as
/// `0x200..=0x20f` with an index or a name on either side, or a group such as `@mtrr`.
///
/// # Errors
/// Returns [`SelectorError`] if the text does not name MSRs.
pub fn parse_msrs(text: &str) -> Result<MsrSet, SelectorError> {
    let text = text.trim();
    let is_list = text.contains([',', ';', '|', '[']) || text.split_whitespace().count() > 1;
    if text.starts_with('@') && !is_list {
        return group(text);
    }
    if let Some((first, last)) = text.split_once("..=") {
        return range(text, first.trim(), last.trim());
    }
    if let Some((_, name)) = text.rsplit_once("::") {
        return Err(of_manual(text, name));
    }
    if let Some((first, last)) = joined_otherwise(text) {
        return Err(SelectorError::OpenRange {
            text: quoted(text),
            instead: meant_ranges(first, last),
        });
    }
    if is_list {
        return Err(SelectorError::List(quoted(text)));
    }
    if text.contains(['*', '?']) {
        return Err(SelectorError::Wildcard(quoted(text)));
    }
    parse_index(text).map(|index| MsrRange::one(index).into())
}

fn range(text: &str, first: &str, last: &str) -> Result<MsrSet, SelectorError> {
    let open = |instead| SelectorError::OpenRange {
        text: quoted(text),
        instead,
    };
    if first.is_empty() || last.is_empty() || last.contains("..") {
        return Err(open(Vec::new()));
    }
    let ends = [first, last].map(parse_index);
    let (first_index, last_index) = match ends {
        [Ok(first), Ok(last)] => (first, last),
        [Err(error), _] | [_, Err(error)] => {
            return Err(match error {
                SelectorError::BadIndex { text, why, .. } => SelectorError::BadIndex {
                    text,
                    why,
                    instead: meant_ranges(first, last),
                },
                error => error,
            });
        }
    };
    match MsrRange::new(first_index, last_index) {
        Some(range) => Ok(range.into()),
        None => Err(SelectorError::BackwardRange {
            text: quoted(text),
            instead: quoted(&format!("{last}..={first}")),
        }),
    }
}

/// Returns the error about a name as AMD's manuals have it, `Core::X86::Msr::HWCR`.
fn of_manual(text: &str, name: &str) -> SelectorError {
    let near = match registers::by_name(name) {
        Named::One(register) => vec![register.name],
        Named::Several(registers) => registers.iter().map(|register| register.name).collect(),
        Named::None(near) => near,
    };
    SelectorError::UnknownName {
        name: quoted(text),
        near,
    }
}

/// Returns the ends of a range whose ends are not joined by `..=`, but by `-` or `to`, for example.
fn joined_otherwise(text: &str) -> Option<(&str, &str)> {
    let joints = ["..", "-", "\u{2013}", ":", "~", " to "];
    let (first, last) = joints.iter().find_map(|joint| text.split_once(joint))?;
    let last = last.trim_start_matches(['.', '=', ' ']);
    let (first, last) = (first.trim(), last.trim());
    let is_joint = text.contains("..") || !first.is_empty() && !last.is_empty();
    is_joint.then_some((first, last))
}

/// Returns the ranges that these ends may mean, the likeliest first.
fn meant_ranges(first: &str, last: &str) -> Vec<String> {
    let readings = |text: &str| match parse_index(text) {
        Ok(_) => vec![text.to_owned()],
        Err(SelectorError::BadIndex { instead, .. }) => instead,
        Err(_) => Vec::new(),
    };
    let (first, last) = (readings(first), readings(last));
    let count = first.len().max(last.len());
    let reading = |number: usize| {
        let first = first.get(number).or(first.last())?;
        let last = last.get(number).or(last.last())?;
        let (low, high) = (parse_index(first).ok()?, parse_index(last).ok()?);
        Some(quoted(&if low <= high {
            format!("{first}..={last}")
        } else {
            format!("{last}..={first}")
        }))
    };
    (0..count).filter_map(reading).collect()
}

/// Returns a selector of the same MSRs in canonical spelling: `IA32_EFER` for `ia32_efer`,
/// hexadecimal digits in small letters, no blanks. An alias stays that alias.
pub(crate) fn spelled(text: &str) -> String {
    let text = text.trim();
    if text.starts_with('@') {
        return text.to_lowercase();
    }
    match text.split_once("..=") {
        Some((first, last)) => format!(
            "{}..={}",
            spelled_one(first.trim()),
            spelled_one(last.trim())
        ),
        None => spelled_one(text),
    }
}

fn spelled_one(text: &str) -> String {
    let registers = match text.get(..2) {
        Some("0x" | "0X") => return text.to_lowercase(),
        _ => registers::by_name(text),
    };
    let registers = match registers {
        Named::One(register) => vec![register],
        Named::Several(registers) => registers,
        Named::None(_) => return text.to_owned(),
    };
    let names = registers.into_iter().flat_map(Register::names);
    // A prefix that the text leaves out is left out of the canonical spelling, too.
    let mut ends = names.filter_map(|name| name.get(name.len().checked_sub(text.len())?..));
    let spelling = ends.find(|name| name.eq_ignore_ascii_case(text));
    spelling.unwrap_or(text).to_owned()
}

fn group(name: &str) -> Result<MsrSet, SelectorError> {
    let ranges = registers::group(&name.to_lowercase())
        .into_iter()
        .flat_map(registers::Group::ranges);
    let ranges = ranges.filter_map(|range| MsrRange::new(*range.start(), *range.end()));
    MsrSet::new(ranges).ok_or_else(|| SelectorError::UnknownGroup(quoted(name)))
}

fn named(name: &str) -> Result<MsrIndex, SelectorError> {
    let found = registers::by_name(name);
    let name = quoted(name);
    match found {
        Named::One(register) => Ok(register.index),
        Named::Several(registers) => {
            let titled = |register: &Register| registers::titled(register.index);
            let candidates = registers.into_iter().map(titled).collect();
            Err(SelectorError::AmbiguousName { name, candidates })
        }
        Named::None(near) if near.is_empty() => {
            let group = registers::group(&format!("@{}", name.to_lowercase()));
            let near = group.into_iter().map(|group| group.name).collect();
            Err(SelectorError::UnknownName { name, near })
        }
        Named::None(near) => Err(SelectorError::UnknownName { name, near }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(text: &str) -> (u32, u32) {
        let range = parse_msrs(text).unwrap().as_range().unwrap();
        (range.first().get(), range.last().get())
    }

    #[test]
    fn parse_msrs_reads_names_indices_and_ranges() {
        assert_eq!(range("0x8b"), (0x8b, 0x8b));
        assert_eq!(range("0XC000_0080"), (0xc000_0080, 0xc000_0080));
        assert_eq!(range(" 0x10 ..= 0x1f "), (0x10, 0x1f));
        assert_eq!(range("ia32_efer"), (0xc000_0080, 0xc000_0080));
        assert_eq!(
            range("IA32_SYSENTER_CS..=IA32_SYSENTER_EIP"),
            (0x174, 0x176)
        );
        assert_eq!(range("0x0..=0xffffffff"), (0, u32::MAX));
    }

    /// Every text that a message proposes can be parsed.
    #[test]
    fn parse_msrs_error_proposes_valid_index_or_range() {
        let texts = [
            "16",
            "3221225602",
            "0b11",
            "0o17",
            "8b",
            "10h",
            "MSRC001_0015",
            "0x1b1UL",
            "10..=20",
            "10-20",
            "0x20..0x10",
            "0x20..=0x10",
            "8b..=0x9f",
            "0b1..0b11",
            "0x10...0x20",
        ];
        for text in texts {
            let instead = match parse_msrs(text).unwrap_err() {
                SelectorError::BadIndex { instead, .. }
                | SelectorError::OpenRange { instead, .. } => instead,
                SelectorError::BackwardRange { instead, .. } => vec![instead],
                error => panic!("{text}: {error}"),
            };
            assert!(!instead.is_empty(), "{text}");
            for one in instead {
                assert!(parse_msrs(&one).is_ok(), "{text}: {one}");
            }
        }
    }

    #[test]
    fn parse_msrs_error_tells_what_to_write() {
        let error = |text: &str| {
            let error = parse_msrs(text).unwrap_err();
            format!("{error}; {}", error.help())
        };
        let texts = [
            "10",
            "0x1_0000_0000",
            "0x",
            "0xg",
            "",
            "0x10..0x20",
            "0x10..=",
            "0x10...0x20",
            "0x10 .. = 0x20",
            "0x20..=0x10",
            "IA32_EFFER",
            "ünïcode",
            "0x10..=0x20..=0x30",
            "-1",
            "0x+1",
            "5",
            "16",
            "3221225602",
            "99999999999",
            "0b11",
            "0o17",
            "8b",
            "C0000080h",
            "MSRC001_0015",
            "MSR_PERFCTR0",
            "MSR_IA32_PMC0",
            "X86X_MSR_FRED_CONFIG",
            "MSR_K8_LSTAR",
            "Core::X86::Msr::HWCR",
            "Core::X86::Msr::NOTHING_LIKE_IT",
            "0x200-0x20f",
            "0x200 - 0x20f",
            "IA32_SYSENTER_CS to IA32_SYSENTER_EIP",
            "10..=20",
            "10-20",
            "0x20..0x10",
            "0x10..=8b",
            "IA32_MTRR_*",
            "*",
            "IA32_LSTAR, IA32_STAR",
            "IA32_LSTAR IA32_STAR",
            "mtrr",
            "@mtrrs",
            "@pat,@mtrr",
        ];
        let all: Vec<_> = texts
            .iter()
            .map(|text| format!("{text}: {}", error(text)))
            .collect();
        insta::assert_snapshot!(all.join("\n"));
    }
}
