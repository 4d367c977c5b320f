//! Reads allowlists of msr-safe: one MSR a line,
//! `0x610 0x00ffffff00ffffff # "MSR_PKG_POWER_LIMIT"`, with its index, a mask of the bits that may
//! be written, and a comment. Every listed MSR may be read. According to msr-safe's source, a
//! write changes the bits of the mask and keeps the others.

use std::collections::BTreeMap;

use msrgate_filter::MsrIndex;
use msrgate_program::{Action, Mask, MsrRange, Outside};

use super::draft::Draft;
use super::drafts::Drafts;
use super::{hexadecimal, lines};
use crate::registers::by_index;

/// A line of an allowlist that names an MSR.
struct Entry {
    index: MsrIndex,
    writable: u64,
    comment: String,
}

/// The content of a line of an allowlist.
enum Line {
    Entry(Entry),
    Nothing,
    /// The index has more than 32 bits.
    TooWide,
    Unreadable,
}

/// Returns true if a line has the form of an allowlist's entry.
pub(super) fn is_entry(line: &str) -> bool {
    matches!(parse(line), Line::Entry(_))
}

/// Returns true if a last line whose line feed is missing is a whole entry: a blank or a comment
/// follows the mask.
pub(super) fn is_whole(line: &str) -> bool {
    line.contains('#') || is_entry(line) && line.ends_with(char::is_whitespace)
}

/// Returns true if a file says that it is an allowlist: an entry has a comment, or a comment names
/// the column of the mask.
pub(super) fn is_commented(bytes: &[u8]) -> bool {
    lines(bytes).any(|(_, line)| {
        let has_comment = line.contains('#') && is_entry(&line);
        has_comment || commented(&line).is_some_and(is_entry) || is_header(&line)
    })
}

/// Returns true if a line is a comment that names the columns: `# MSR # Write Mask # Comment`.
fn is_header(line: &str) -> bool {
    let comment = line.trim_start().strip_prefix('#');
    comment.is_some_and(|text| text.to_ascii_lowercase().contains("write mask"))
}

/// Returns the number of the first line that heads a list of CSRs, `# CSR # Write Mask # Comment`.
/// These registers are in the configuration space of PCI, and their numbers are no MSRs.
pub(super) fn head_of_csrs(bytes: &[u8]) -> Option<usize> {
    let is_of_csrs = |line: &str| {
        let text = commented(line).unwrap_or_default();
        let mut words = text.split_whitespace();
        let is_csr = words
            .next()
            .is_some_and(|word| word.eq_ignore_ascii_case("csr"));
        is_csr && (is_header(line) || words.next().is_none())
    };
    let found = lines(bytes).find(|(_, line)| is_of_csrs(line));
    found.map(|(number, _)| number)
}

/// Returns the text after the `#` if a line is a comment.
fn commented(line: &str) -> Option<&str> {
    let line = line.trim_start();
    line.starts_with('#').then(|| line.trim_start_matches('#'))
}

/// Returns the number of entries that are commented out.
pub(super) fn commented_entries(bytes: &[u8]) -> usize {
    let entries = lines(bytes).filter(|(_, line)| commented(line).is_some_and(is_entry));
    entries.count()
}

pub(super) fn read(bytes: &[u8]) -> Drafts {
    let mut drafts = Drafts::new(Action::Deny);
    let mut entries: BTreeMap<MsrIndex, (usize, Entry)> = BTreeMap::new();
    for (number, line) in lines(bytes) {
        match parse(&line) {
            Line::Nothing => {}
            Line::Unreadable => {
                drafts.skip(
                    number,
                    "this line is not `0xINDEX 0xMASK # COMMENT` and was skipped",
                );
            }
            Line::TooWide => drafts.skip(
                number,
                "an MSR index has at most 32 bits; the line was skipped",
            ),
            Line::Entry(entry) => match entries.get_mut(&entry.index) {
                Some((first, before)) => {
                    let index = entry.index;
                    before.writable &= entry.writable;
                    let what = format!(
                        "{index} is on line {first}, too; the policy allows only the bits that both lines allow"
                    );
                    drafts.note(Some(number), what);
                }
                None => _ = entries.insert(entry.index, (number, entry)),
            },
        }
    }
    let commented = commented_entries(bytes);
    if entries.is_empty() && commented > 0 {
        let entries = if commented == 1 {
            "entry is"
        } else {
            "entries are"
        };
        let what = format!(
            "{commented} {entries} commented out, and no other is there, so the allowlist allows nothing; remove the `#` before the MSRs that a guest may read"
        );
        drafts.lose(None, what);
    }
    for (number, entry) in entries.into_values() {
        say(&mut drafts, number, entry);
    }
    drafts
}

fn say(drafts: &mut Drafts, number: usize, entry: Entry) {
    let Entry {
        index, writable, ..
    } = entry;
    let is_forwardable = by_index(index).is_some_and(|register| register.forward().is_some());
    let write = match writable {
        u64::MAX => Action::Allow,
        0 => Action::Deny,
        bits if is_forwardable => Action::Mask(Mask {
            bits,
            outside: Outside::Keep,
        }),
        bits => {
            let what = format!(
                "{index}: the allowlist permits writes of the bits {bits:#x} only, but a policy cannot use `mask` for this register, so the policy refuses all writes"
            );
            drafts.lose(Some(number), what);
            Action::Deny
        }
    };
    // Most comments are the register's name, which is already the entry's key.
    let is_name = by_index(index).is_some_and(|register| {
        let mut names = register.names();
        names.any(|name| same_name(name, &entry.comment))
    });
    drafts.say(&Draft {
        why: (!is_name && !entry.comment.is_empty()).then_some(entry.comment),
        ..Draft::new(MsrRange::one(index), [Some(Action::Allow), Some(write)])
    });
}

/// Returns true if two names mean the same register. Names differ in case and in their prefixes,
/// as in `MSR_PERF_CTL`, `IA32_PERF_CTL` and msr-safe's own `SMSR_PERF_CTL`.
fn same_name(one: &str, other: &str) -> bool {
    let bare = |name: &str| {
        let name = name.to_ascii_uppercase();
        let name = name.trim_start_matches("SMSR_").trim_start_matches("MSR_");
        name.trim_start_matches("IA32_").to_owned()
    };
    bare(one) == bare(other)
}

fn parse(line: &str) -> Line {
    let (numbers, comment) = line.split_once('#').unwrap_or((line, ""));
    let mut words = numbers.split_whitespace();
    let (first, second) = match (words.next(), words.next(), words.next()) {
        (None, ..) => return Line::Nothing,
        (Some(first), Some(second), None) => (first, second),
        _ => return Line::Unreadable,
    };
    let number = |word| match hexadecimal(word) {
        Some((number, "")) => Some(number),
        _ => None,
    };
    match (number(first).map(u32::try_from), number(second)) {
        (Some(Err(_)), Some(_)) => Line::TooWide,
        (Some(Ok(index)), Some(writable)) => Line::Entry(Entry {
            index: MsrIndex::new(index),
            writable,
            comment: comment.trim().trim_matches('"').to_owned(),
        }),
        _ => Line::Unreadable,
    }
}
