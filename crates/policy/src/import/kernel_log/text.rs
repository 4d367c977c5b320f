//! The text of a log's lines, as kernels wrote them: without the marks of a quoted mail, out of the
//! journal's JSON, and with lines joined that a mail or a forum has wrapped.

use std::borrow::Cow;

use serde_json::Value;

use super::message::{self, Messages, OF_GUEST, is_of_kvm};

/// The maximum number of lines into which a message may be wrapped.
const WRAPPED: usize = 3;

/// A line of a log, in small letters, with the lines that continue its message.
pub(super) struct Entry {
    /// The number of the line, counted from 1.
    pub(super) number: usize,
    pub(super) text: String,
    /// The messages that begin in this line.
    pub(super) messages: Messages,
}

/// An object of `journalctl -o json`.
#[derive(serde::Deserialize)]
struct Record {
    #[serde(rename = "MESSAGE")]
    message: Value,
}

/// Returns the entries of a log. A line that continues the message of the line before is no entry.
pub(super) fn entries(bytes: &[u8]) -> impl Iterator<Item = Entry> {
    let mut lines = crate::import::lines(bytes)
        .map(|(number, line)| (number, plain(&line)))
        .peekable();
    let mut rest: std::collections::VecDeque<(usize, String)> = std::collections::VecDeque::new();
    std::iter::from_fn(move || {
        let (number, text) = rest.pop_front().or_else(|| lines.next())?;
        let mut joined = text.clone();
        let mut messages = message::parse(&text);
        let mut used = 0;
        while is_beginning(&text) && is_open(&joined, &messages) && used + 1 < WRAPPED {
            if rest.len() == used {
                rest.extend(lines.next());
            }
            let Some((_, next)) = rest.get(used).filter(|(_, next)| continues(next)) else {
                break;
            };
            joined = format!("{} {next}", joined.trim_end());
            used += 1;
            let of_both = message::parse(&joined);
            // A message without its value stays, unless the next line has the value, or the rest of
            // a further message of KVM. Lines that are no log may have a message's words, too.
            let is_further = of_both.read.len() > messages.read.len();
            if !messages.read.is_empty() && of_both.read == messages.read
                || is_further && !is_begun(&text, &messages)
                || of_both.has_unread
            {
                break;
            }
            if !of_both.read.is_empty() {
                messages = of_both;
                rest.drain(..used);
                used = 0;
            }
        }
        Some(Entry {
            number,
            text,
            messages,
        })
    })
}

/// Returns true if a message, or the value of its write, may be on the next line.
fn is_open(text: &str, messages: &Messages) -> bool {
    let is_without_value = messages
        .read
        .last()
        .is_some_and(|last| last.access == msrgate_filter::Access::Write && last.value.is_none());
    is_without_value || is_begun(text, messages)
}

/// Returns true if a further message may begin in a text, behind the messages that were read.
fn is_begun(text: &str, messages: &Messages) -> bool {
    messages.read.is_empty() || is_beginning(text.get(messages.end..).unwrap_or_default())
}

fn is_beginning(text: &str) -> bool {
    is_of_kvm(text) || text.contains(OF_GUEST)
}

/// Returns true if a line may continue the message of the line before: it has text, but no time, no
/// name of a log's writer, and no beginning of a message.
fn continues(text: &str) -> bool {
    !text.is_empty() && !text.starts_with('[') && !text.contains("kernel:") && !is_beginning(text)
}

/// Returns the text of a line as the kernel wrote it, in small letters.
fn plain(line: &str) -> String {
    let text = line.trim_start_matches(|mark: char| mark == '>' || mark.is_whitespace());
    let text = match serde_json::from_str(text) {
        Ok(Record { message }) if text.starts_with('{') => content(&message),
        _ => Cow::Borrowed(text),
    };
    text.trim().to_ascii_lowercase()
}

/// Returns the text in the field `MESSAGE` of a journal's record: a string, or an array of bytes if
/// it is not UTF-8.
fn content(message: &Value) -> Cow<'static, str> {
    let bytes = |bytes: &Vec<Value>| {
        let bytes = bytes.iter().filter_map(Value::as_u64);
        bytes
            .filter_map(|byte| u8::try_from(byte).ok())
            .collect::<Vec<_>>()
    };
    match message {
        Value::String(text) => Cow::Owned(text.clone()),
        Value::Array(array) => Cow::Owned(String::from_utf8_lossy(&bytes(array)).into_owned()),
        _ => Cow::Borrowed(""),
    }
}
