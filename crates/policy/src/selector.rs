//! How people say which MSRs they mean: a name, an index, or a range of these.

use std::fmt;

use msrgate_filter::MsrIndex;
use msrgate_program::{MsrRange, MsrSet, one_line};

use crate::registers::{self, Named, Register};
use crate::source::quoted;

/// Text that means no MSRs.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum SelectorError {
    /// No register has this name.
    UnknownName {
        /// The name.
        name: String,
        /// Names that look like it, the likeliest first.
        near: Vec<&'static str>,
    },
    /// No group has this name.
    UnknownGroup(String),
    /// A name that means different MSRs on different processors.
    AmbiguousName {
        /// The name.
        name: String,
        /// What it may mean, such as `0x1d9 on Intel`.
        candidates: Vec<String>,
    },
    /// Something that begins like an index, and is none.
    BadIndex {
        /// What stands there.
        text: String,
        /// What is wrong with it.
        why: &'static str,
        /// What was meant, where that can be told.
        instead: Option<String>,
    },
    /// A range written with `..`, of which nobody knows whether its end is part of it.
    OpenRange {
        /// The same range, its end included, where that can be told.
        instead: Option<String>,
    },
    /// A range whose end is below its start.
    BackwardRange(String),
}

impl fmt::Display for SelectorError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnknownName { name, .. } => write!(f, "no MSR is called `{}`", one_line(name)),
            Self::UnknownGroup(name) => write!(f, "no group is called `{}`", one_line(name)),
            Self::AmbiguousName { name, candidates } => {
                let candidates = one_line(&candidates.join(" or "));
                write!(f, "`{}` is {candidates}", one_line(name))
            }
            Self::BadIndex { text, why, .. } => {
                write!(f, "`{}` is no MSR index: {why}", one_line(text))
            }
            Self::OpenRange { .. } => f.write_str("a range includes its last MSR"),
            Self::BackwardRange(text) => {
                write!(f, "the range `{}` ends before it begins", one_line(text))
            }
        }
    }
}

impl std::error::Error for SelectorError {}

impl SelectorError {
    /// What to do about it, in a sentence.
    #[must_use]
    pub fn help(&self) -> String {
        match self {
            Self::UnknownName { near, .. } if near.is_empty() => {
                "`msrgate msr WORD` looks registers up; an index such as `0x8b` is always understood"
                    .to_owned()
            }
            Self::UnknownName { near, .. } => {
                let near: Vec<_> = near.iter().map(|name| format!("`{name}`")).collect();
                format!("did you mean {}?", near.join(" or "))
            }
            Self::UnknownGroup(_) => {
                let names: Vec<_> = registers::groups().iter().map(|group| group.name).collect();
                format!("there are {}", names.join(", "))
            }
            Self::AmbiguousName { .. } => "write the index of the one that is meant".to_owned(),
            Self::BadIndex { instead: None, .. } => {
                "an index looks like `0xc0000080`, a name like `IA32_EFER`".to_owned()
            }
            Self::OpenRange { instead: None } => "a range looks like `0x200..=0x20f`".to_owned(),
            Self::BadIndex {
                instead: Some(instead),
                ..
            }
            | Self::OpenRange {
                instead: Some(instead),
            } => format!("write `{}`", one_line(instead)),
            Self::BackwardRange(_) => "write the lower index first".to_owned(),
        }
    }
}

/// The MSRs that `text` means: `IA32_EFER`, `0xc0000080`, `0x200..=0x20f` with an index or a name on
/// either side, or a group such as `@mtrr`.
///
/// # Errors
/// It means none.
pub fn parse_msrs(text: &str) -> Result<MsrSet, SelectorError> {
    let text = text.trim();
    if text.starts_with('@') {
        return group(text);
    }
    let Some((first, last)) = text.split_once("..") else {
        return parse_index(text).map(|index| MsrRange::one(index).into());
    };
    let Some(last) = last.strip_prefix('=') else {
        let both = [first, last].map(|end| parse_index(end.trim()));
        let is_range = both.iter().all(Result::is_ok);
        return Err(SelectorError::OpenRange {
            instead: is_range.then(|| quoted(&format!("{}..={}", first.trim(), last.trim()))),
        });
    };
    let (first, last) = (parse_index(first.trim())?, parse_index(last.trim())?);
    let range = MsrRange::new(first, last);
    range
        .map(MsrSet::from)
        .ok_or_else(|| SelectorError::BackwardRange(quoted(text)))
}

/// Text that means the same MSRs in the spelling of the table: `IA32_EFER` for `ia32_efer`, digits
/// in small letters, no blanks. A name stays the one that it is.
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
    // What is left out in front of a name is left out of its spelling.
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

fn parse_index(text: &str) -> Result<MsrIndex, SelectorError> {
    let bad = |why, instead: Option<String>| {
        Err(SelectorError::BadIndex {
            text: quoted(text),
            why,
            instead,
        })
    };
    let digits = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X"));
    if let Some(digits) = digits {
        let plain = digits.replace('_', "");
        if !is_hexadecimal(&plain) {
            return bad("these are not hexadecimal digits", None);
        }
        return match u32::from_str_radix(&plain, 16) {
            Ok(index) => Ok(MsrIndex::new(index)),
            Err(_) => bad("an index has 32 bits", None),
        };
    }
    if text.is_empty() {
        return bad("there is nothing", None);
    }
    if text.starts_with(|first: char| first.is_ascii_digit()) && is_hexadecimal(text) {
        return bad(
            "indices are hexadecimal and say so",
            Some(format!("0x{text}")),
        );
    }
    named(text)
}

fn is_hexadecimal(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

fn named(name: &str) -> Result<MsrIndex, SelectorError> {
    let found = registers::by_name(name);
    let name = quoted(name);
    match found {
        Named::One(register) => Ok(register.index),
        Named::Several(registers) => {
            let candidates = registers.into_iter().map(candidate).collect();
            Err(SelectorError::AmbiguousName { name, candidates })
        }
        Named::None(near) => Err(SelectorError::UnknownName { name, near }),
    }
}

fn candidate(register: &Register) -> String {
    format!("{} ({})", register.index, register.vendor)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(text: &str) -> (u32, u32) {
        let range = parse_msrs(text).unwrap().as_range().unwrap();
        (range.first().get(), range.last().get())
    }

    #[test]
    fn names_indices_and_ranges() {
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

    #[test]
    fn what_is_wrong_says_what_to_write() {
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
        ];
        let all: Vec<_> = texts
            .iter()
            .map(|text| format!("{text}: {}", error(text)))
            .collect();
        insta::assert_snapshot!(all.join("\n"));
    }
}
