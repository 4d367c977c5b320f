//! Plain messages for lines that are not TOML. The parser tells what it expected; users need to
//! know what to write.

use std::collections::BTreeSet;
use std::ops::{Range, RangeInclusive};

use super::Reader;
use crate::layout;
use crate::limits::MAX_MISTAKES;
use crate::mistake::MistakeKind;
use crate::selector::{SelectorError, parse_msrs};
use crate::source::{Source, quoted};

impl Reader<'_> {
    /// Reports each line of the current text that is not TOML, once. Returns the numbers of these
    /// lines, counted from 1.
    pub(super) fn bad_lines<'e>(
        &mut self,
        errors: impl Iterator<Item = &'e toml::de::Error>,
    ) -> BTreeSet<u32> {
        let mut lines = BTreeSet::new();
        let source = self.text().clone();
        for error in errors.take(MAX_MISTAKES) {
            let span = error.span().unwrap_or_default();
            if !lines.insert(source.place(span.clone().into()).line) {
                continue;
            }
            let text = source.text();
            let before = text.get(..span.start).unwrap_or(text);
            let start = before.rfind('\n').map_or(0, |end| end + 1);
            let line = text[start..].lines().next().unwrap_or_default();
            let Advice { why, help, at } = advice(line, before.len() - start, error.message());
            if error.message().contains("inline table")
                || error.message().contains("key-value pairs")
            {
                lines.extend(lines_from_brace(&source, span.start));
            }
            let span = at.map_or(span, |at| start + at.start..start + at.end);
            self.report(self.at(span.into()), MistakeKind::Syntax { why, help });
        }
        lines
    }
}

/// Returns the lines from the opening brace of a broken inline table to the place `at` in that
/// table. The search looks back at most 16 KiB for the brace.
fn lines_from_brace(source: &Source, at: usize) -> RangeInclusive<u32> {
    const FAR: usize = 1 << 14;
    let from = at.saturating_sub(FAR);
    let before = source.text().as_bytes().get(from..at).unwrap_or_default();
    let brace = before.iter().rposition(|byte| *byte == b'{');
    let line = |at: usize| source.place(at.into()).line;
    line(brace.map_or(at, |brace| from + brace))..=line(at)
}

/// A message about a line, with advice. `at` is the part of the line that the message is about;
/// `None` means the place where the parser stopped.
struct Advice {
    why: String,
    help: String,
    at: Option<Range<usize>>,
}

impl Advice {
    fn new(why: impl Into<String>, help: impl Into<String>) -> Self {
        Self {
            why: why.into(),
            help: help.into(),
            at: None,
        }
    }
}

fn advice(line: &str, column: usize, message: &str) -> Advice {
    by_shape(line)
        .or_else(|| of_a_word(line, column, message))
        .or_else(|| of_a_head(line, message))
        .or_else(|| by_message(line, column, message))
        .unwrap_or_else(|| {
            Advice::new(
                format!("this line is not TOML: {}", quoted(message)),
                "`msrgate help policy` shows how a policy is written",
            )
        })
}

/// Returns the advice that follows from the form of the line, without the parser's message.
fn by_shape(line: &str) -> Option<Advice> {
    let body = line.trim();
    if body.contains(['\u{201c}', '\u{201d}', '\u{2018}', '\u{2019}']) {
        return Some(Advice::new(
            "a typographic quote is not a quote of TOML",
            "write `\"`",
        ));
    }
    if ["//", ";", "--", "/*"]
        .iter()
        .any(|mark| body.starts_with(mark))
    {
        return Some(Advice::new(
            "this is not a comment of TOML",
            "begin a comment with `#`",
        ));
    }
    let (key, value) = body.split_once(':')?;
    let key = key.trim_end();
    let is_key = !key.is_empty() && key.bytes().all(is_bare) || key.starts_with('"');
    is_key.then(|| {
        let colon = line.find(':').unwrap_or_default();
        let (key, value) = (quoted(key), quoted(&in_quotes(value.trim())));
        Advice {
            why: "`=` joins a key and its value, not `:`".to_owned(),
            help: format!("write `{key} = {value}`"),
            at: Some(colon..colon + 1),
        }
    })
}

/// Returns advice about the head of a table whose closing bracket is missing.
fn of_a_head(line: &str, message: &str) -> Option<Advice> {
    let name = line.trim().trim_matches(['[', ']']).trim();
    let (why, head) = match message {
        _ if name.is_empty() => return None,
        _ if message.starts_with("unclosed array table") => {
            ("the header of a table has no `]]`", format!("[[{name}]]"))
        }
        _ if message.starts_with("unclosed table") => {
            ("the header of a table has no `]`", format!("[{name}]"))
        }
        _ => return None,
    };
    Some(Advice::new(why, format!("write `{}`", quoted(&head))))
}

/// Returns advice about a word that needs quotes, or is not valid in TOML.
fn of_a_word(line: &str, column: usize, message: &str) -> Option<Advice> {
    let words = words(line);
    let is_here = |word: &&Word<'_>| (word.at.start..=word.at.end).contains(&column);
    let needs_quotes = |word: &&Word<'_>| word.is_range_or_group();
    let word = words
        .iter()
        .find(needs_quotes)
        .or_else(|| words.iter().find(is_here))?;
    let text = word.text;
    let lower = text.to_ascii_lowercase();
    let at = Some(word.at.clone());
    if !word.is_key && ["true", "false"].contains(&&*lower) {
        return Some(Advice {
            why: format!("TOML does not know the word `{text}`"),
            help: format!("write `{lower}`"),
            at,
        });
    }
    let is_value = [
        "string values",
        "invalid boolean",
        "invalid float",
        "invalid integer",
    ]
    .iter()
    .any(|start| message.starts_with(start));
    let is_text = text.starts_with(|first: char| first.is_ascii_alphabetic()) && is_value;
    let is_to_be_quoted = word.is_range_or_group() || !word.is_key && is_text;
    is_to_be_quoted.then(|| Advice {
        why: format!("`{}` needs quotes", quoted(text)),
        help: format!("quote it: `{}`", quoted(&word.quoted_in(line))),
        at,
    })
}

/// A word: letters, digits and signs outside of quotes.
struct Word<'l> {
    text: &'l str,
    at: Range<usize>,
    /// True if a value follows the word, or if the word ends the head of a table.
    is_key: bool,
}

impl Word<'_> {
    fn is_range_or_group(&self) -> bool {
        self.text.starts_with('@') || self.text.contains("..")
    }

    /// Returns the line with this word in quotes. If the line is anything else than a key with its
    /// value or the head of a table, returns the quoted word alone.
    fn quoted_in(&self, line: &str) -> String {
        let meant = match parse_msrs(self.text) {
            Err(
                SelectorError::OpenRange { instead, .. } | SelectorError::BadIndex { instead, .. },
            ) => instead.into_iter().next(),
            Err(SelectorError::BackwardRange { instead, .. }) => Some(instead),
            _ => None,
        };
        let text = layout::string(meant.as_deref().unwrap_or(self.text));
        let (before, after) = (line[..self.at.start].trim_start(), &line[self.at.end..]);
        match after.trim_start().strip_prefix('=') {
            Some(value) if before.is_empty() => format!("{text} = {}", in_quotes(value.trim())),
            None if before.starts_with('[') && after.trim() == "]" => format!("{before}{text}]"),
            None if after.trim().is_empty() && before.matches('=').count() == 1 => {
                format!("{before}{text}")
            }
            _ => text,
        }
    }
}

/// Returns `value` in quotes if it is a word without quotes; otherwise returns `value` unchanged.
fn in_quotes(value: &str) -> String {
    let starts = value.starts_with(|first: char| first.is_ascii_alphabetic());
    if starts && value.bytes().all(is_bare) && !["true", "false"].contains(&value) {
        layout::string(value)
    } else {
        value.to_owned()
    }
}

const fn is_bare(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-'
}

/// Returns the words of a line outside of quotes. `..=` joins two words to one.
fn words(line: &str) -> Vec<Word<'_>> {
    let bytes = line.as_bytes();
    let mut words = Vec::new();
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        match byte {
            b'#' => break,
            b'"' | b'\'' => {
                let rest = &line[at + 1..];
                at += rest
                    .find(char::from(byte))
                    .map_or(rest.len(), |end| end + 1)
                    + 1;
            }
            _ if is_bare(byte) || byte == b'@' => {
                let start = at;
                while at < bytes.len() && is_part(bytes, at) {
                    at += 1;
                }
                let rest = line[at..].trim_start();
                let is_head = line[..start].trim_start().starts_with('[') && rest.starts_with(']');
                let is_key = rest.starts_with('=') || is_head;
                if !is_key && line[..start].trim_end().ends_with('=') {
                    at = end_of_value(line, start);
                }
                words.push(Word {
                    text: &line[start..at],
                    at: start..at,
                    is_key,
                });
            }
            _ => at += 1,
        }
    }
    words
}

/// Returns the offset at which a value without quotes ends. Blanks within the value belong to it.
fn end_of_value(line: &str, start: usize) -> usize {
    let rest = &line[start..];
    let value = rest.split([',', '}', ']', '#', '"']).next().unwrap_or(rest);
    start + value.trim_end().len()
}

fn is_part(bytes: &[u8], at: usize) -> bool {
    let before = at.checked_sub(1).map(|at| bytes[at]);
    match bytes[at] {
        b'=' => before == Some(b'.'),
        // In `msrs.0x10..=0x20`, a single dot separates two keys.
        b'.' => before == Some(b'.') || bytes.get(at + 1) == Some(&b'.'),
        byte => is_bare(byte) || byte == b'@',
    }
}

/// The beginnings of the parser's messages, each with the problem and the advice.
const SAID: [(&str, &str, &str); 12] = [
    (
        "invalid basic string",
        "a string has no closing quote on this line",
        "write `\"` at the end of the string",
    ),
    (
        "invalid literal string",
        "a string has no closing quote on this line",
        "write `'` at the end of the string",
    ),
    (
        "unclosed array",
        "a list has no `]`",
        "write `]` at the end of the list",
    ),
    (
        "unclosed inline table",
        "a table has no `}`",
        "write `}` at the end of the table",
    ),
    (
        "missing comma between array",
        "a comma is missing in a list",
        "write `,` between the items of the list",
    ),
    (
        "missing comma between key",
        "a comma is missing in a table",
        "write `,` between the parts of the table, as in `{ read = \"allow\", write = \"deny\" }`, or `}` at its end",
    ),
    (
        "extra comma",
        "a value or a key is missing before this comma",
        "delete the comma",
    ),
    (
        "unexpected key or value",
        "more text follows the value on this line",
        "begin a new line, or a comment with `#`",
    ),
    (
        "key with no value",
        "a key has no value",
        "write `=` and the value after it",
    ),
    (
        "missing value",
        "no value follows `=`",
        "write a value, or delete the line",
    ),
    (
        "missing assignment",
        "a key has no value",
        "write `=` and the value after it",
    ),
    (
        "extra `=`",
        "the line has a second `=`",
        "delete the second `=`",
    ),
];

/// Returns the parser's message in plain words.
fn by_message(line: &str, column: usize, message: &str) -> Option<Advice> {
    // The parser reads a key without a value in an inline table as a string without quotes.
    let before = line.get(..column).unwrap_or(line);
    let is_open = ['"', '\'']
        .iter()
        .any(|quote| before.matches(*quote).count() % 2 == 1);
    if message.contains("string") && !is_open {
        return Some(Advice::new(
            "a key has no value",
            "write `=` and the value after it",
        ));
    }
    let said = SAID.iter().find(|(start, ..)| message.starts_with(start));
    said.map(|(_, why, help)| Advice::new(*why, *help))
}
