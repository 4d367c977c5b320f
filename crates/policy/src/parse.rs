//! From a policy's text to a [`Policy`], or to all of its mistakes at once.

mod conflict;
mod entry;
mod msrs;

use std::ops::Range;

use miette::SourceSpan;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::mistake::{Mistake, Mistakes};
use crate::policy::{Action, Entry, Policy};
use crate::source::{Source, quoted};

/// The most bytes a policy may have: 16 MiB.
pub const MAX_BYTES: usize = 16 << 20;

/// The most bytes a line of a policy may have, so that a message can quote it.
pub const MAX_LINE: usize = 4096;

/// The most entries a policy may have.
pub const MAX_ENTRIES: usize = 250_000;

/// The language version this program reads.
const VERSION: i64 = 1;

/// Reads a policy.
///
/// # Errors
/// All mistakes in it, with their places: bad TOML, unknown keys, words and names, entries that
/// overlap and disagree. Text over [`MAX_BYTES`], with a line over [`MAX_LINE`] or with more than
/// [`MAX_ENTRIES`] is refused unread.
pub fn parse(source: &Source) -> Result<Policy, Box<Mistakes>> {
    let mut reader = Reader {
        source,
        mistakes: Vec::new(),
    };
    let policy = reader.policy();
    match policy {
        Some(policy) if reader.mistakes.is_empty() => Ok(policy),
        _ => Err(Box::new(Mistakes::new(source, reader.mistakes))),
    }
}

/// Collects mistakes on the way through a document: what is wrong is left out, the rest goes on.
struct Reader<'s> {
    source: &'s Source,
    mistakes: Vec<Mistake>,
}

/// A key with the place where it stands.
#[derive(Clone, Copy)]
struct Key<'k> {
    text: &'k str,
    at: SourceSpan,
}

/// A value with its key.
#[derive(Clone, Copy)]
struct Item<'k> {
    key: Key<'k>,
    value: &'k Spanned<DeValue<'k>>,
}

impl Item<'_> {
    fn at(&self) -> SourceSpan {
        span(self.value.span())
    }
}

fn span(range: Range<usize>) -> SourceSpan {
    range.into()
}

/// A table's items in the order of the text.
fn items<'t>(table: &'t DeTable<'t>) -> Vec<Item<'t>> {
    let mut items: Vec<_> = table
        .iter()
        .map(|(key, value)| Item {
            key: Key {
                text: key.get_ref(),
                at: span(key.span()),
            },
            value,
        })
        .collect();
    items.sort_by_key(|item| item.key.at.offset());
    items
}

impl Reader<'_> {
    fn policy(&mut self) -> Option<Policy> {
        let text = self.source.text();
        if text.len() > MAX_BYTES {
            self.mistakes.push(Mistake::TooLong {
                bytes: text.len(),
                limit: MAX_BYTES,
            });
            return None;
        }
        let long = self.source.lines_over(MAX_LINE);
        self.mistakes
            .extend(long.map(|(line, bytes)| Mistake::LongLine {
                line,
                bytes,
                limit: MAX_LINE,
            }));
        if !self.mistakes.is_empty() {
            return None;
        }
        let (document, errors) = DeTable::parse_recoverable(text);
        let is_toml = errors.is_empty();
        self.mistakes
            .extend(errors.iter().map(|error| Mistake::Syntax {
                message: error.message().to_owned(),
                at: span(error.span().unwrap_or_default()),
            }));
        let (name, default, entries) = self.document(document.get_ref(), is_toml);
        let msrs: Vec<&Entry> = entries.iter().collect();
        self.mistakes.extend(conflict::find(&msrs));
        Some(Policy {
            source: self.source.clone(),
            name,
            default: default?,
            entries,
        })
    }

    /// The keys of the whole file. A key that is missing from a text that is not TOML may have
    /// been lost in the part that could not be read: nothing is said of it.
    fn document(
        &mut self,
        document: &DeTable<'_>,
        is_toml: bool,
    ) -> (Option<Box<str>>, Option<Action>, Vec<Entry>) {
        let (mut name, mut default) = (None, None);
        let mut entries = Vec::new();
        let (mut has_version, mut has_default) = (false, false);
        for item in items(document) {
            match item.key.text {
                "policy" => {
                    has_version = true;
                    self.version(item);
                }
                "name" => name = self.string(item).map(Box::from),
                "default" => {
                    has_default = true;
                    default =
                        self.action(item, &[("allow", Action::Allow), ("deny", Action::Deny)]);
                }
                "msrs" => entries = self.msrs(item),
                // Where a table's head is broken, its keys seem to stand outside of it.
                _ if !is_toml => {}
                _ => self.unknown_key(item.key, &["policy", "name", "default", "msrs"]),
            }
        }
        if is_toml && !has_version {
            self.missing(
                "policy",
                "the language version: write `policy = 1` at the top",
            );
        }
        if is_toml && !has_default {
            self.missing(
                "default",
                "what happens to MSRs that no entry names: write `default = \"deny\"` or `default = \"allow\"` above `[msrs]`",
            );
        }
        self.last_msr_obeys_the_default(&entries, default);
        (name, default, entries)
    }

    fn missing(&mut self, key: &'static str, help: &'static str) {
        self.mistakes.push(Mistake::MissingKey {
            key,
            help,
            at: None,
        });
    }

    fn version(&mut self, item: Item<'_>) {
        match item.value.get_ref() {
            DeValue::Integer(number)
                if i64::from_str_radix(number.as_str(), number.radix()) == Ok(VERSION) => {}
            DeValue::Integer(number) => self.mistakes.push(Mistake::UnknownVersion {
                version: number.to_string(),
                at: item.at(),
            }),
            _ => self.wrong_type(item, "a number, 1"),
        }
    }

    fn string<'k>(&mut self, item: Item<'k>) -> Option<&'k str> {
        if let DeValue::String(text) = item.value.get_ref() {
            Some(text)
        } else {
            self.wrong_type(item, "a string");
            None
        }
    }

    /// The meaning of one of the words that may stand here.
    fn action<T: Copy>(&mut self, item: Item<'_>, words: &[(&'static str, T)]) -> Option<T> {
        let word = self.string(item)?;
        let found = words.iter().find(|(known, _)| *known == word);
        if found.is_none() {
            let known: Vec<_> = words.iter().map(|&(known, _)| known).collect();
            self.mistakes.push(Mistake::UnknownWord {
                word: quoted(word),
                key: quoted(item.key.text),
                help: one_of(word, &known, '"'),
                at: item.at(),
            });
        }
        found.map(|&(_, meaning)| meaning)
    }

    fn wrong_type(&mut self, item: Item<'_>, wanted: &'static str) {
        let found = match item.value.get_ref() {
            DeValue::String(_) => "a string",
            DeValue::Integer(_) => "a number",
            DeValue::Float(_) => "a number with a point",
            DeValue::Boolean(_) => "true or false",
            DeValue::Datetime(_) => "a date",
            DeValue::Array(_) => "a list",
            DeValue::Table(_) => "a table",
        };
        self.mistakes.push(Mistake::WrongType {
            key: quoted(item.key.text),
            found,
            wanted,
            at: item.at(),
        });
    }

    fn unknown_key(&mut self, key: Key<'_>, known: &[&str]) {
        self.mistakes.push(Mistake::UnknownKey {
            key: quoted(key.text),
            help: one_of(key.text, known, '`'),
            at: key.at,
        });
    }
}

/// Which of the known words is meant, or all of them.
fn one_of(word: &str, known: &[&str], quote: char) -> String {
    let nearest = known
        .iter()
        .map(|&known| (strsim::osa_distance(&word.to_lowercase(), known), known))
        .min()
        .filter(|&(distance, known)| distance <= known.len() / 2 && distance <= 3);
    let quoted = |word: &str| format!("{quote}{word}{quote}");
    let all = || {
        known
            .iter()
            .map(|word| quoted(word))
            .collect::<Vec<_>>()
            .join(", ")
    };
    match nearest {
        Some((_, nearest)) => format!("did you mean {}? It may be {}", quoted(nearest), all()),
        None => format!("it may be {}", all()),
    }
}

#[cfg(test)]
mod tests;
