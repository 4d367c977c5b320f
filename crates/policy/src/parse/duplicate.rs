//! Duplicate keys: TOML forbids them, and its parser names only the second occurrence.

use std::collections::{BTreeSet, HashMap};
use std::ops::Range;

use miette::SourceSpan;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::{Reader, words};
use crate::limits::MAX_MISTAKES;
use crate::mistake::{Label, Mistake, MistakeKind};
use crate::source::quoted;

/// The parser's message about a duplicate key.
const MESSAGE: &str = "duplicate key";

/// The maximum number of duplicate keys for which the first occurrence is shown.
const MOST: usize = 50;

/// The maximum length of a text, in bytes, in which first occurrences are looked for. The search
/// takes as much memory as reading the text once more.
const LONGEST: usize = 1 << 20;

impl Reader<'_> {
    /// Reports the parts of `text` that are not TOML. `text` is the current text, or its
    /// beginning. Returns the lines about which nothing else needs to be reported.
    pub(super) fn not_toml(&mut self, text: &str, errors: &[toml::de::Error]) -> BTreeSet<u32> {
        let (again, others): (Vec<_>, Vec<_>) =
            errors.iter().partition(|error| error.message() == MESSAGE);
        let lines = self.bad_lines(others.into_iter());
        self.duplicates(text, &again);
        lines
    }

    fn duplicates(&mut self, text: &str, again: &[&toml::de::Error]) {
        let again = again.iter().filter_map(|error| error.span());
        let again: Vec<_> = again.take(MAX_MISTAKES).collect();
        // The search for first occurrences parses the text once more.
        if again.is_empty() {
            return;
        }
        let firsts = firsts(text, &again);
        for (span, first) in again.iter().zip(firsts) {
            let at = self.at(span.clone().into());
            let first = first.map(|first| self.at(first));
            let line = |span: SourceSpan| self.text().place(span).line;
            let key = decoded(text.get(span.clone()).unwrap_or_default());
            let kind = MistakeKind::DuplicateKey {
                help: help(&key, text[..span.start.min(text.len())].ends_with('[')),
                key: quoted(&key),
                line: line(at.span()),
                first: first.map(|first| line(first.span())),
            };
            let second = Label::saying(at, "and again here".to_owned());
            let first = first.map(|first| Label::saying(first, "here".to_owned()));
            self.mistake(Mistake {
                kind,
                places: [second].into_iter().chain(first).collect(),
            });
        }
    }
}

/// Returns the advice about a duplicate key, or a duplicate head of a table.
fn help(key: &str, is_head: bool) -> &'static str {
    match (key, is_head) {
        ("msrs", true) => {
            "write all entries below one `[msrs]`; write the entries of a `[[when]]` below `[when.msrs]`"
        }
        ("when", true) => "begin each `[[when]]` with two brackets",
        (_, true) => "write all of its lines below one of the two headers",
        (key, false) if words::TOP.contains(&key) || words::ENTRY.contains(&key) => {
            "delete one of the two"
        }
        _ => "delete one of the two; `{ read = …, write = … }` sets reads and writes in one entry",
    }
}

/// Returns the first occurrence of each duplicate key. A copy of the text, in which a unique key
/// replaces each duplicate, is parsed. The first occurrence is the key with the duplicate's name in
/// the table that has the unique key.
fn firsts(text: &str, again: &[Range<usize>]) -> Vec<Option<SourceSpan>> {
    if text.len() > LONGEST {
        return vec![None; again.len()];
    }
    let mut spans: Vec<_> = again.iter().take(MOST).cloned().enumerate().collect();
    spans.sort_by_key(|(_, span)| span.start);
    let mut unlike = text.to_owned();
    for (number, span) in spans.iter().rev() {
        if unlike.get(span.clone()).is_some() {
            unlike.replace_range(span.clone(), &substitute(*number));
        }
    }
    // Converts a place in the changed text to the place in the original.
    let original = |at: usize| {
        spans.iter().fold(at, |at, (number, span)| {
            if at > span.start {
                (at + span.len()).saturating_sub(substitute(*number).len())
            } else {
                at
            }
        })
    };
    let (unlike, _) = DeTable::parse_recoverable(&unlike);
    let mut tables = HashMap::new();
    substituted(unlike.get_ref(), &mut tables);
    let first = |(number, span): (usize, &Range<usize>)| {
        let table = tables.get(substitute(number).as_str())?;
        let (key, _) = table.get_key_value(decoded(text.get(span.clone())?).as_str())?;
        let key = key.span();
        Some((original(key.start), key.len()).into())
    };
    again.iter().enumerate().map(first).collect()
}

const SUBSTITUTE: &str = "in-place-of-duplicate-";

fn substitute(number: usize) -> String {
    format!("{SUBSTITUTE}{number}")
}

/// Returns a key without its quotes and escapes.
fn decoded(key: &str) -> String {
    let text = format!("{key} = 0");
    let table = DeTable::parse(&text).ok();
    let first = table
        .as_ref()
        .and_then(|table| table.get_ref().keys().next());
    first.map_or_else(|| key.to_owned(), |key| key.get_ref().to_string())
}

/// Adds each substituted key to `tables`, with the table that contains the key.
fn substituted<'t, 's>(table: &'t DeTable<'s>, tables: &mut HashMap<&'t str, &'t DeTable<'s>>) {
    let keys = table.keys().map(|key| &**key.get_ref());
    let keys = keys.filter(|key| key.starts_with(SUBSTITUTE));
    tables.extend(keys.map(|key| (key, table)));
    for value in table.values() {
        within(value, tables);
    }
}

fn within<'t, 's>(value: &'t Spanned<DeValue<'s>>, tables: &mut HashMap<&'t str, &'t DeTable<'s>>) {
    match value.get_ref() {
        DeValue::Table(table) => substituted(table, tables),
        DeValue::Array(array) => array.iter().for_each(|value| within(value, tables)),
        _ => {}
    }
}
