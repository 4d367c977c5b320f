//! Prints an imported policy as text.

use msrgate_filter::MsrIndex;
use msrgate_program::{MsrSet, one_line};

use super::{Draft, Gap, Imported, LossKind, Scope, grouped};
use crate::layout::{self, Body, Comments, EntryText, Value, gap, shortened};
use crate::print::{self, action};
use crate::registers::{self, Register, by_index};

/// The maximum number of characters of a comment that come from the file.
const COMMENT: usize = 100;

/// Returns the policy's text, with a heading that names `origin`, such as a file's name.
///
/// The text parses as a policy with these entries, unless it is longer than a policy may be.
#[must_use]
pub fn print(imported: &Imported, origin: &str) -> String {
    let format = imported.format;
    let mut text = format!(
        "# Imported from {}: {format}.\n{}",
        comment(origin),
        meaning(imported)
    );
    let count = |kind| {
        let losses = imported.losses.iter();
        losses.filter(|loss| loss.kind == kind).count()
    };
    match count(LossKind::LeftOut) {
        0 => {}
        1 => text.push_str(
            "# One part of it could not be imported; `msrgate import` named this part.\n",
        ),
        count => text.push_str(&format!(
            "# {count} parts of it could not be imported; `msrgate import` named these parts.\n"
        )),
    }
    match count(LossKind::Note) {
        0 => {}
        1 => text.push_str("# `msrgate import` printed a note about it.\n"),
        count => text.push_str(&format!(
            "# `msrgate import` printed {count} notes about it.\n"
        )),
    }
    text.push_str(match imported.gap {
        None => "",
        Some(Gap::Skipped) => {
            "# A line of the file could not be read, so this policy may lack registers.\n"
        }
        Some(Gap::LostMessages) => {
            "# The log says that it lacks messages, so this policy may lack registers.\n"
        }
        Some(Gap::CutOff) => {
            "# A part of the file may be missing; `msrgate import` named the line.\n"
        }
    });
    layout::fields(&mut text, &print::head(&imported.settings));
    gap(&mut text);
    let entries = imported.entries.iter().map(entry).collect();
    layout::entries(&mut text, "msrs", &Comments::default(), entries);
    print::devices(&mut text, &imported.settings);
    text
}

/// Returns the meaning of the policy and the processors on which it holds, as lines of comments.
fn meaning(imported: &Imported) -> String {
    let meaning = imported.format.meaning();
    match &imported.scope {
        Scope::All => format!("# {meaning}\n"),
        Scope::CompiledFor(cpu) => format!(
            "# {meaning}\n\
            # The filter was compiled for {}.\n\
            # On other processors this policy may be looser or stricter than the one that the filter came from.\n",
            comment(cpu)
        ),
        Scope::Like(cpu) => format!(
            "# {meaning}\n\
            # This holds on processors such as {}.\n\
            # On other processors the program has other rules, so this policy may be looser or stricter there.\n",
            comment(&cpu.to_string())
        ),
    }
}

fn entry(draft: &Draft) -> EntryText {
    let why = draft.why.as_ref();
    EntryText {
        comments: Comments {
            trail: why.map(|why| format!("# {}", comment(why))),
            ..Comments::default()
        },
        key: key(&draft.msrs),
        body: Body::Line(value(draft)),
    }
}

/// Returns the key of an entry: the name or index of a single MSR, the name of a group, or a range.
/// A range is written with names if all its MSRs have names, else with indices.
fn key(msrs: &MsrSet) -> String {
    let group = registers::groups()
        .iter()
        .find(|group| grouped::msrs(group).as_ref() == Some(msrs));
    let name = |index| by_index(index).map(|register: &Register| register.name);
    match (msrs.as_range(), group) {
        (Some(range), _) if range.count() == 1 => {
            name(range.first()).map_or_else(|| range.to_string(), str::to_owned)
        }
        (_, Some(group)) => group.name.to_owned(),
        (Some(range), None) => {
            let (first, last) = (range.first(), range.last());
            let mut indices = (first.get()..=last.get()).map(MsrIndex::new);
            match (name(first), name(last)) {
                (Some(first), Some(last)) if indices.all(|index| name(index).is_some()) => {
                    format!("{first}..={last}")
                }
                _ => range.to_string(),
            }
        }
        (None, None) => msrs.to_string(),
    }
}

fn value(draft: &Draft) -> Value {
    let [read, write] = draft.actions.each_ref().map(Option::as_ref);
    let both = [("read", action(read)), ("write", action(write))];
    let log = draft.log.map(|level| ("log", print::log(level)));
    let fields = both.into_iter().chain(log);
    shortened(fields.map(|(key, value)| (key.to_owned(), value)).collect())
}

/// Returns the beginning of a file's text for a comment: on one line, escaped, and cut after
/// [`COMMENT`] characters.
fn comment(text: &str) -> String {
    let start: String = text.chars().take(COMMENT).collect();
    let mut comment = one_line(&start);
    if text.chars().nth(COMMENT).is_some() {
        comment.push('…');
    }
    comment
}
