//! A policy's text as a tree of tables, keys and values, with the comments of each part. The tree
//! does not depend on the way in which the text writes its tables.

use indexmap::IndexMap;
use toml_edit::{Array, InlineTable, Value as Toml};

use super::statement::{Statement, comment};
use crate::layout::{Comments, Element, Field, List, Value};

/// Keys whose values are numbers, even if a value stands in quotes.
const NUMBERS: [&str; 9] = [
    "value", "mask", "sticky", "reset", "revision", "family", "model", "stepping", "read",
];

/// A part of a policy's text: a table, or a key with its value.
#[derive(Debug, Default)]
pub(super) struct Node {
    pub(super) comments: Comments,
    pub(super) origin: Origin,
    /// The value of the key. `None`: the part is a table.
    pub(super) value: Option<Value>,
    pub(super) parts: IndexMap<String, Node>,
}

/// The form in which the text writes a part.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Origin {
    /// The text writes the part as the right side of `key = value`.
    #[default]
    Value,
    /// The text writes the part as a table with a head of its own, such as `[msrs]`.
    Head,
}

impl Node {
    /// Returns the tree of these statements of `text`. A statement is a table head or a `key =
    /// value`.
    pub(super) fn of(statements: Vec<Statement<'_>>, text: &str) -> Self {
        let mut root = Self::default();
        for statement in statements {
            let key = statement.path.last().map_or("", String::as_str);
            let (value, origin) = match statement.value {
                Some(value) => (Some(from_toml(key, value, text)), Origin::Value),
                None => (None, Origin::Head),
            };
            let mut node = &mut root;
            for key in &statement.path {
                node = node.parts.entry(key.clone()).or_default();
            }
            let mut comments = statement.comments;
            if let Some(value) = value {
                node.value = value.value;
                node.parts = value.parts;
                comments.lead.extend(value.comments.lead);
            }
            node.origin = origin;
            node.comments = comments;
        }
        root
    }

    /// Returns the node as a field `key = value`, with the comments of all its parts.
    pub(super) fn into_field(self, key: &str) -> Field {
        let mut comments = self.comments;
        let mut fields = Vec::new();
        for (name, part) in self.parts {
            let field = part.into_field(&name);
            let Comments { lead, trail, tail } = field.comments;
            if fields.is_empty() && lead.first().is_some_and(String::is_empty) {
                comments.begin_paragraph();
            }
            let all = lead.into_iter().chain(trail).chain(tail);
            comments.lead.extend(all.filter(|line| !line.is_empty()));
            fields.push((name, field.value));
        }
        let value = self.value.unwrap_or(Value::Table(fields));
        Field {
            comments,
            key: key.to_owned(),
            value,
        }
    }
}

/// Returns the node of a TOML value, with the comments in the value.
fn from_toml(key: &str, value: &Toml, text: &str) -> Node {
    let mut node = Node::default();
    match value {
        Toml::InlineTable(table) => (node.parts, node.comments.lead) = from_table(table, text),
        Toml::Array(array) if array.iter().any(Toml::is_inline_table) => {
            let parts = array.iter().enumerate();
            let parts = parts.map(|(n, one)| (n.to_string(), from_toml(key, one, text)));
            node.parts = parts.collect();
            let spans = array.iter().filter_map(Toml::span);
            let stray = between(array.span(), spans, text).concat();
            node.comments.lead = stray.into_iter().filter(|line| !line.is_empty()).collect();
        }
        Toml::Array(array) => node.value = Some(Value::List(from_list(key, array, text))),
        value => node.value = Some(scalar(key, value, text)),
    }
    node
}

/// Returns the parts of an inline table, and the comments between them.
fn from_table(table: &InlineTable, text: &str) -> (IndexMap<String, Node>, Vec<String>) {
    let mut found = IndexMap::new();
    let mut spans = Vec::new();
    for (key, value) in table {
        spans.extend(table.key(key).and_then(toml_edit::Key::span));
        match value {
            // For `a.b = 1`, the parser gives `a`'s table the span of a key, not of the whole
            // table.
            Toml::InlineTable(dotted) if dotted.is_dotted() => {
                spans.extend(spans_within(dotted));
                let (parts, _) = from_table(dotted, text);
                let node = Node {
                    parts,
                    ..Node::default()
                };
                found.insert(key.to_owned(), node);
            }
            value => {
                spans.extend(value.span());
                found.insert(key.to_owned(), from_toml(key, value, text));
            }
        }
    }
    let mut stray = Vec::new();
    // The comments between the parts of `a.b = 1` are found by the call for the table around `a`.
    if !table.is_dotted() {
        stray = between(table.span(), spans.into_iter(), text).concat();
        stray.retain(|line| !line.is_empty());
    }
    (found, stray)
}

fn spans_within(dotted: &InlineTable) -> Vec<std::ops::Range<usize>> {
    let mut spans = Vec::new();
    for (key, value) in dotted {
        spans.extend(dotted.key(key).and_then(toml_edit::Key::span));
        match value {
            Toml::InlineTable(inner) if inner.is_dotted() => spans.extend(spans_within(inner)),
            value => spans.extend(value.span()),
        }
    }
    spans
}

fn from_list(key: &str, array: &Array, text: &str) -> List {
    let spans = array.iter().filter_map(Toml::span);
    let mut between = between(array.span(), spans, text).into_iter();
    let mut lead = between.next().unwrap_or_default();
    let mut list = List::default();
    for value in array {
        let after = between.next().unwrap_or_default();
        // `after` is the text behind the element. If its first line has a comment, the comment
        // belongs to the element.
        let (trail, next) = match after.split_first() {
            Some((first, rest)) if !first.is_empty() => (Some(first.clone()), rest.to_vec()),
            _ => (None, after),
        };
        list.elements.push(Element {
            lead: lead.into_iter().filter(|line| !line.is_empty()).collect(),
            value: scalar(key, value, text),
            trail,
        });
        lead = next;
    }
    list.tail = lead.into_iter().filter(|line| !line.is_empty()).collect();
    list
}

/// Returns the comments between the parts of a table or a list, one list of comments for each gap:
/// before the first part, between two parts, and after the last part. The first string of such a
/// list is the comment on the gap's first line; the string is empty if that line has no comment.
fn between(
    whole: Option<std::ops::Range<usize>>,
    parts: impl Iterator<Item = std::ops::Range<usize>>,
    text: &str,
) -> Vec<Vec<String>> {
    let Some(whole) = whole else {
        return Vec::new();
    };
    let mut parts: Vec<_> = parts.collect();
    parts.sort_by_key(|part| part.start);
    let mut start = whole.start;
    let ends = parts.iter().map(|part| (part.start, part.end));
    ends.chain([(whole.end, whole.end)])
        .map(|(end, next)| {
            let gap = text.get(start..end).unwrap_or_default();
            start = next;
            let all = gap.lines().map(|line| comment(line).unwrap_or_default());
            all.enumerate()
                .filter(|(number, line)| *number == 0 || !line.is_empty())
                .map(|(_, line)| line)
                .collect()
        })
        .collect()
}

/// Returns the value for a string, a number, true or false, as [`layout`](crate::layout) writes it.
fn scalar(key: &str, value: &Toml, text: &str) -> Value {
    match value {
        Toml::String(string) if NUMBERS.contains(&key) => {
            let number = string.value().to_lowercase();
            let parts: Vec<_> = number.split("..=").map(str::trim).collect();
            Value::text(parts.join("..="))
        }
        Toml::String(string) => Value::text(string.value().as_str()),
        other => {
            let written = other.span().and_then(|span| text.get(span));
            Value::Bare(written.unwrap_or_default().to_lowercase())
        }
    }
}
