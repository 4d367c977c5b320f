//! Imports files that other tools and the kernel write about MSRs, as policies.
//!
//! Each format is read into entries that a policy could have, and into remarks on the parts that a
//! policy cannot express. [`print()`] turns the entries into a policy's text, with the remarks.
//!
//! ```
//! use msrgate_policy::import::{import, print};
//!
//! let allowlist = b"0x10 0x0 # \"MSR_TSC\"\n0x610 0x00ffffff00ffffff # \"MSR_PKG_POWER_LIMIT\"\n";
//! let imported = import(allowlist, None)?;
//! assert!(print(&imported, "allowlist").contains("IA32_TIME_STAMP_COUNTER = \"r\""));
//! assert_eq!(imported.losses[0].line, Some(2));
//! # Ok::<_, msrgate_policy::import::ImportError>(())
//! ```

mod compiled;
mod detect;
mod draft;
mod drafts;
mod dump;
mod emitted;
mod firecracker;
mod grouped;
mod ioctl;
mod kernel_log;
mod msr_safe;
mod print;
mod program;
mod with_reasons;
mod without_effect;
mod wrong_json;

use std::fmt;

use msrgate_filter::FilterError;
use msrgate_program::one_line;

use crate::limits::MAX_ENTRIES;
use crate::policy::Settings;

use drafts::Drafts;

pub(crate) use detect::is_utf_16;

pub use compiled::{compiled_filter, is_compiled_filter};
pub use draft::{Draft, Gap, Loss, LossKind, Scope};
pub use print::print;
pub use with_reasons::CompiledFilter;

/// The format of a file to import.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Format {
    /// Lines of a kernel's log in which KVM names MSRs that it does not know, `ignored rdmsr: 0x1c9`,
    /// or a guest's kernel names MSRs at which it got #GP. Also the records of `journalctl -o json`.
    KernelLog,
    /// A custom CPU template of Firecracker, or a fingerprint, in JSON.
    Firecracker,
    /// Firecracker's list of the MSRs that a guest could read, with their values: `MSR_ADDR,VALUE`, or
    /// `MSR_ADDR,STATUS,VALUE` with a status `implemented` or `unimplemented`.
    FirecrackerList,
    /// An allowlist of msr-safe: index, mask of writable bits, comment.
    MsrSafe,
    /// The filter of a compiled policy: msrgate's own JSON, C, Rust, or the bytes of the ioctl, also as a
    /// dump of `hexdump`, `xxd` or `od`.
    Compiled,
    /// A compiled policy as a program file.
    Program,
}

impl Format {
    /// Every format.
    pub const ALL: [Self; 6] = [
        Self::KernelLog,
        Self::Firecracker,
        Self::FirecrackerList,
        Self::MsrSafe,
        Self::Compiled,
        Self::Program,
    ];

    /// The meaning of the imported policy, as a sentence. The policy of a filter or a program has
    /// this meaning on the processors of its [`Scope`].
    #[must_use]
    pub const fn meaning(self) -> &'static str {
        match self {
            Self::KernelLog => {
                "For MSRs that KVM did not know, the policy does what KVM did; KVM handles all other MSRs, and those of which the log does not tell. Where KVM answered an access of such an MSR, a gate in the VMM has to answer it."
            }
            Self::Firecracker => {
                "A template gives registers their first values and refuses no access. The policy has only the values that a guest cannot change."
            }
            Self::FirecrackerList => "The guest can read the registers that the list names.",
            Self::MsrSafe => {
                "The guest can read the registers that the allowlist names, and write the bits that the allowlist permits. Where it permits only a part of the bits, and a policy cannot mask the register, all writes are refused."
            }
            Self::Compiled => "The policy decides every access as the compiled filter does.",
            Self::Program => "The policy decides and answers every access as the program does.",
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::KernelLog => "a kernel log",
            Self::Firecracker => "a Firecracker CPU template",
            Self::FirecrackerList => "a Firecracker list of MSRs",
            Self::MsrSafe => "an msr-safe allowlist",
            Self::Compiled => "a compiled filter",
            Self::Program => "a program",
        })
    }
}

/// The content of a file, as far as a policy can express it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Imported {
    /// The format in which the file was read.
    pub format: Format,
    /// The processors on which the imported policy decides as the file does.
    pub scope: Scope,
    /// The settings: everything of the imported policy but its entries.
    pub settings: Settings,
    /// The entries, sorted by index; no two overlap.
    pub entries: Vec<Draft>,
    /// Remarks on parts of the file that a policy cannot express, or whose meaning is unsure, in
    /// the order of the file.
    pub losses: Vec<Loss>,
    /// The sign that a part of the file is missing, if there is one. [`losses`](Self::losses)
    /// mentions the missing part, too.
    pub gap: Option<Gap>,
}

/// The reason for which a file cannot be imported.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ImportError {
    /// The file has none of the known formats.
    UnknownFormat,
    /// The file has two columns of hexadecimal numbers, without the header or a comment of an
    /// allowlist. The second column may be masks or values.
    TwoColumns,
    /// The file is a template of Firecracker for aarch64, which has no MSRs.
    Aarch64,
    /// The file is not JSON, or has the wrong shape. The text names the place, and quotes no
    /// value.
    Json(String),
    /// A value in the file is not valid.
    Value {
        /// The place of the value, such as `ranges[2].base`.
        place: String,
        /// The reason for which the value is not valid.
        why: String,
    },
    /// The bytes are not a program file, or not the filter of an ioctl; the field has the reason.
    Bytes(String),
    /// The ranges in the file cannot form a filter; the field has the reason.
    Filter(FilterError),
    /// The policy would need more entries than a policy may have; the field is the number needed.
    TooManyEntries(usize),
}

impl ImportError {
    fn value(place: impl Into<String>, why: impl fmt::Display) -> Self {
        Self::Value {
            place: place.into(),
            why: why.to_string(),
        }
    }
}

impl fmt::Display for ImportError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnknownFormat => f.write_str(
                "msrgate does not recognise the format of the file; name it with --from: a kernel log of KVM, a CPU template, fingerprint or list of Firecracker, an allowlist of msr-safe, a program, or a compiled filter in JSON, C, Rust or bytes, which may also be a dump as by `hexdump -C`",
            ),
            Self::TwoColumns => f.write_str(
                "the file has two columns of numbers, and does not say what the second one is; if it has the bits that a guest may write, add `--from msr-safe`; a list of values, such as a dump of registers, cannot be imported",
            ),
            Self::Aarch64 => f.write_str(
                "the file is a Firecracker CPU template for aarch64, which has no MSRs; import a template for x86_64",
            ),
            Self::Json(message) => {
                write!(f, "invalid JSON: {}", one_line(message))
            }
            Self::Value { place, why } => { write!(f, "{}: {}", one_line(place), one_line(why)) },
            Self::Bytes(why) => f.write_str(&one_line(why)),
            Self::Filter(error) => fmt::Display::fmt(error, f),
            Self::TooManyEntries(entries) => write!(
                f,
                "the policy would have {entries} entries; at most {MAX_ENTRIES} are allowed"
            ),
        }
    }
}

impl std::error::Error for ImportError {}

/// Imports a file whose format is `format`. If `format` is `None`, finds the format from the file's
/// content.
///
/// # Errors
/// Returns [`ImportError`] if the format is unknown, or if the file is not a whole file of the
/// format. In line-based formats, a line that cannot be read causes a remark, and so does a last
/// line that may be cut off.
pub fn import(bytes: &[u8], format: Option<Format>) -> Result<Imported, ImportError> {
    if is_utf_16(bytes) {
        return Err(ImportError::Bytes(
            "the file is text in UTF-16; convert it to UTF-8, for example by `iconv -f UTF-16 -t UTF-8`"
                .to_owned(),
        ));
    }
    let bytes = without_mark(bytes);
    let format = match format {
        Some(format) => format,
        None => detect::detect(bytes)?,
    };
    let drafts = match format {
        Format::KernelLog => read_lines(bytes, kernel_log::read, kernel_log::is_whole),
        Format::Firecracker => firecracker::read(bytes)?,
        Format::FirecrackerList => read_lines(bytes, firecracker::read_list, firecracker::is_whole),
        Format::MsrSafe => {
            if let Some(line) = msr_safe::head_of_csrs(bytes) {
                return Err(ImportError::value(
                    format!("line {line}"),
                    "this is the head of a list of CSRs, registers in the configuration space of PCI, and a policy is about MSRs; import the MSRs alone",
                ));
            }
            read_lines(bytes, msr_safe::read, msr_safe::is_whole)
        }
        Format::Compiled => compiled::read(bytes)?,
        Format::Program => program::read(bytes)?,
    };
    let imported = drafts.imported(format);
    if imported.entries.len() > MAX_ENTRIES {
        return Err(ImportError::TooManyEntries(imported.entries.len()));
    }
    Ok(imported)
}

/// Returns a text without the mark that some editors put before a text in UTF-8.
pub(crate) fn without_mark(bytes: &[u8]) -> &[u8] {
    bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes)
}

/// Reads a text of lines. A last line without a line feed may be the beginning of a longer line,
/// for example `0xff` of `0xff00`. Such a line is read only if `is_whole` finds in it every part
/// that is used.
///
/// A text has no byte that is 0. Such a byte means that a part of the file was lost on its way to a
/// disk.
fn read_lines(bytes: &[u8], read: fn(&[u8]) -> Drafts, is_whole: fn(&str) -> bool) -> Drafts {
    if let Some(at) = memchr::memchr(0, bytes) {
        let mut drafts = read(bytes);
        drafts.lose(
            Some(memchr::memchr_iter(b'\n', &bytes[..at]).count() + 1),
            "this line has a zero byte, so a part of the file was lost; copy or record the file again",
        );
        drafts.lacks(Gap::CutOff);
        return drafts;
    }
    let start = memchr::memrchr(b'\n', bytes).map_or(0, |end| end + 1);
    let (before, last) = bytes.split_at(start);
    let last = String::from_utf8_lossy(last);
    if last.trim().is_empty() || is_whole(&last) {
        return read(bytes);
    }
    let mut drafts = read(before);
    drafts.lose(
        Some(memchr::memchr_iter(b'\n', before).count() + 1),
        "this last line was not read: it does not end with a line feed, so the file may be cut off here; if the line is complete, add a line feed",
    );
    drafts.lacks(Gap::CutOff);
    drafts
}

/// Returns the lines of a text with their numbers, counted from 1. Bytes that are not UTF-8 are
/// replaced.
fn lines(bytes: &[u8]) -> impl Iterator<Item = (usize, std::borrow::Cow<'_, str>)> {
    let lines = bytes.split(|&byte| byte == b'\n').enumerate();
    lines.map(|(place, line)| (place + 1, String::from_utf8_lossy(line)))
}

/// Returns the number after `0x` at the start of `text`, and the rest.
fn hexadecimal(text: &str) -> Option<(u64, &str)> {
    let digits = text
        .strip_prefix("0x")
        .or_else(|| text.strip_prefix("0X"))?;
    let end = digits
        .find(|digit: char| !digit.is_ascii_hexdigit())
        .unwrap_or(digits.len());
    let number = u64::from_str_radix(&digits[..end], 16).ok()?;
    Some((number, &digits[end..]))
}

/// Returns the bytes that pairs of hexadecimal digits stand for; `None` if the text has anything else.
fn bytes_of_digits(digits: &str) -> Option<Vec<u8>> {
    let (pairs, rest) = digits.as_bytes().as_chunks::<2>();
    let digit = |digit: u8| {
        char::from(digit)
            .to_digit(16)
            .and_then(|value| u8::try_from(value).ok())
    };
    let byte = |&[high, low]: &[u8; 2]| Some(digit(high)? << 4 | digit(low)?);
    let bytes = pairs.iter().map(byte).collect::<Option<_>>()?;
    rest.is_empty().then_some(bytes)
}

/// Returns the beginning of a file's text as a message quotes it: escaped, and cut after 40
/// characters.
fn quoted(text: &str) -> String {
    const SHOWN: usize = 40;
    let shown: String = text
        .chars()
        .take(SHOWN)
        .flat_map(char::escape_debug)
        .collect();
    let more = if text.chars().nth(SHOWN).is_some() {
        "…"
    } else {
        ""
    };
    format!("`{}{more}`", one_line(&shown))
}

#[cfg(test)]
mod tests;
