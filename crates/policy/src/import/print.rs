//! The text of an imported policy.

use msrgate_filter::MsrIndex;

use super::{Draft, Imported, grouped};
use crate::msrs::MsrSet;
use crate::print::{action, devices, head, log, word};
use crate::registers::{self, Register, by_index};

/// Keys up to this wide are followed by blanks, so that their values stand in a column.
const WIDEST: usize = 44;

/// The most characters of a comment that come from the file.
const COMMENT: usize = 100;

/// The policy, with a heading that says it is from `origin`, such as a file's name.
///
/// Parsing the text gives a policy with these entries, unless it is longer than a policy may be.
#[must_use]
pub fn print(imported: &Imported, origin: &str) -> String {
    let format = imported.format;
    let mut text = format!(
        "# Imported from {}: {format}.\n# {}\n",
        comment(origin),
        format.meaning()
    );
    match imported.unsaid.len() {
        0 => {}
        1 => text.push_str("# One thing in it could not be said; the import named it.\n"),
        count => text.push_str(&format!(
            "# {count} things in it could not be said; the import named them.\n"
        )),
    }
    text.push_str(&head(&imported.settings));
    text.push_str("\n[msrs]\n");
    let keys: Vec<_> = imported
        .entries
        .iter()
        .map(|draft| key(&draft.msrs))
        .collect();
    let width = keys
        .iter()
        .map(String::len)
        .filter(|&width| width <= WIDEST);
    let width = width.max().unwrap_or_default();
    for (key, draft) in keys.iter().zip(&imported.entries) {
        text.push_str(&format!("{key:<width$} = {}", value(draft)));
        if let Some(why) = &draft.why {
            text.push_str(&format!("  # {}", comment(why)));
        }
        text.push('\n');
    }
    text.push_str(&devices(&imported.settings));
    text
}

/// A name where there is one; a range by names where all of its MSRs have one; a group.
fn key(msrs: &MsrSet) -> String {
    let group = registers::groups()
        .iter()
        .find(|group| grouped::msrs(group).as_ref() == Some(msrs));
    let name = |index| by_index(index).map(|register: &Register| register.name);
    match (msrs.as_range(), group) {
        (Some(range), _) if range.count() == 1 => {
            name(range.first()).map_or_else(|| range.to_string(), str::to_owned)
        }
        (_, Some(group)) => format!("\"{}\"", group.name),
        (Some(range), None) => {
            let (first, last) = (range.first(), range.last());
            let mut indices = (first.get()..=last.get()).map(MsrIndex::new);
            match (name(first), name(last)) {
                (Some(first), Some(last)) if indices.all(|index| name(index).is_some()) => {
                    format!("\"{first}..={last}\"")
                }
                _ => format!("\"{range}\""),
            }
        }
        (None, None) => format!("\"{msrs}\""),
    }
}

fn value(draft: &Draft) -> String {
    let [read, write] = draft.actions.each_ref().map(Option::as_ref);
    match word([read, write]) {
        Some(word) if draft.log.is_none() => format!("\"{word}\""),
        _ => {
            let level = draft
                .log
                .map_or(String::new(), |level| format!(", log = \"{}\"", log(level)));
            format!(
                "{{ read = {}, write = {}{level} }}",
                action(read),
                action(write)
            )
        }
    }
}

/// Text of a file as part of a comment: on one line, whatever is in it.
fn comment(text: &str) -> String {
    let plain = |letter: char| if letter.is_control() { ' ' } else { letter };
    let mut comment: String = text.chars().take(COMMENT).map(plain).collect();
    if text.chars().nth(COMMENT).is_some() {
        comment.push('…');
    }
    comment
}
