//! The canonical form of a policy's text.

mod edit;
mod node;
mod statement;

use std::collections::HashMap;

use crate::layout::{
    self, Body, Comments, EntryText, Field, Value, comment_lines, gap, header, shortened,
};
use crate::mistake::{MistakeKind, Mistakes};
use crate::parse::mistake_in;
use crate::resolve::check_alone;
use crate::selector::spelled;
use crate::source::Source;
pub(crate) use edit::Edited;
use node::{Node, Origin};

/// The keys of the settings, in their canonical order.
const SETTINGS: [&str; 8] = [
    "policy", "name", "include", "mode", "default", "unknown", "log", "accept",
];

/// The keys of an entry, in their canonical order.
const ENTRY: [&str; 8] = [
    "read", "write", "device", "register", "override", "final", "log", "why",
];

/// The keys of all other tables (`unknown`, a register, a mask, a device, a `cpu`), in their
/// canonical order.
const OTHERS: [&str; 13] = [
    "read", "write", "log", "reset", "value", "mask", "outside", "revision", "update", "vendor",
    "family", "model", "stepping",
];

/// Returns a policy's text in canonical form: the same policy, with the same comments.
///
/// - Settings come first, in the order of the reference, then `[msrs]`, `[device.microcode]`, and
///   the `[[when]]`s. Entries keep their order, and paragraphs stay paragraphs.
/// - An entry is a line. The entry becomes a table, `[msrs.NAME]`, if the line would pass 120
///   columns, or if its `why` has several lines. Tables stand after the entries that are lines. If
///   one entry below a comment becomes a table, all entries below that comment do. An entry that was
///   a table in the text stays a table.
/// - Values of a paragraph are aligned in a column, and so are the comments beside them. A table
///   that has the same meaning as a word, such as `"rw"`, becomes the word. Keys have quotes only
///   where TOML requires them, hexadecimal digits are small letters, and names are spelled as in
///   the register table.
///
/// A comment stays with its line: the line below the comment, beside it, or right above it.
/// Formatting formatted text changes nothing. Includes are not followed.
///
/// # Errors
/// Returns all mistakes that the text has by itself. A mistake that another text may mend, such as
/// an `override` of an included entry, does not count.
pub fn format(source: &Source) -> Result<String, Box<Mistakes>> {
    check_alone(source)?;
    let formatted = Edited::of(source)?.into_text();
    checked(source, formatted)
}

/// Returns `formatted`, the canonical form of a text, if msrgate can read it again.
pub(crate) fn checked(source: &Source, formatted: String) -> Result<String, Box<Mistakes>> {
    // A canonical form that cannot be read must not replace a text that can be read.
    let again = check_alone(&Source::new(source.name(), &formatted));
    again.map_err(|mistakes| match beyond_a_limit(&mistakes) {
        Some(kind) => Box::new(mistake_in(source, 0..0, kind)),
        None => mistakes,
    })?;
    Ok(formatted)
}

/// Returns a mistake which says that the canonical form exceeds a limit, with the size of the
/// canonical form. The text itself is within the limit.
fn beyond_a_limit(mistakes: &Mistakes) -> Option<MistakeKind> {
    let (what, found, limit) = match *mistakes.mistakes().first()?.kind() {
        MistakeKind::TooLong { bytes, limit } => ("bytes", bytes, limit),
        MistakeKind::LongLine { bytes, limit, .. } => ("bytes in one line", bytes, limit),
        MistakeKind::TooMany { what, found, limit } => (what, found, limit),
        _ => return None,
    };
    Some(MistakeKind::CanonicalForm { what, found, limit })
}

fn write(mut root: Node, head: &[String], foot: &[String]) -> String {
    let [msrs, devices, whens] = ["msrs", "device", "when"].map(|key| root.parts.shift_remove(key));
    let mut text = String::new();
    comment_lines(&mut text, head);
    let (mut settings, _) = into_fields(root, &SETTINGS);
    if let Some(first) = settings.first_mut() {
        first.comments.lead.retain({
            let mut is_first = true;
            move |line| !std::mem::take(&mut is_first) || !line.is_empty()
        });
    }
    layout::fields(&mut text, &settings);
    if let Some(msrs) = msrs {
        gap(&mut text);
        entries(&mut text, "msrs", msrs);
    }
    for (name, device) in devices.into_iter().flat_map(with_head_for_first) {
        gap(&mut text);
        let (mut fields, comments) = into_fields(device, &OTHERS);
        without_paragraphs(&mut fields);
        header(&mut text, &format!("[device.{name}]"), &comments);
        layout::fields(&mut text, &fields);
    }
    for (_, one) in whens.into_iter().flat_map(with_head_for_first) {
        gap(&mut text);
        when(&mut text, one);
    }
    if !foot.is_empty() {
        gap(&mut text);
        comment_lines(&mut text, foot);
    }
    text
}

/// Returns the parts of a table, and moves the table's own comments to the first part.
fn with_head_for_first(table: Node) -> impl Iterator<Item = (String, Node)> {
    let mut own = Some(table.comments.clone());
    table.parts.into_iter().map(move |(key, mut child)| {
        if let Some(own) = own.take() {
            let all = own.lead.into_iter().chain(own.trail).chain(own.tail);
            child.comments.lead.splice(0..0, all);
        }
        (key, child)
    })
}

fn when(text: &mut String, mut when: Node) {
    let msrs = when.parts.shift_remove("msrs");
    let cpu = when.parts.shift_remove("cpu");
    header(text, "[[when]]", &when.comments);
    if let Some(cpu) = cpu {
        let mut field = cpu.into_field("cpu");
        sort(&mut field.value);
        field.comments.lead.retain(|line| !line.is_empty());
        layout::cpu(text, field);
    }
    if let Some(msrs) = msrs {
        if text
            .lines()
            .last()
            .is_some_and(|line| line.starts_with('#'))
            || msrs.comments.has_heading()
        {
            gap(text);
        }
        entries(text, "when.msrs", msrs);
    }
}

/// Writes the entries of one table: of `[msrs]` or of a `[when.msrs]`.
fn entries(text: &mut String, path: &str, msrs: Node) {
    let Node {
        comments,
        parts: children,
        ..
    } = msrs;
    // Two keys that would be equal in canonical spelling keep their own spelling.
    let mut spellings = HashMap::<String, usize>::new();
    for key in children.keys() {
        *spellings.entry(spelled(key)).or_default() += 1;
    }
    let entries = children.into_iter().map(|(written, child)| {
        let spelled = spelled(&written);
        let key = if spellings.get(&spelled) == Some(&1) {
            spelled
        } else {
            written
        };
        entry(key, child)
    });
    layout::entries(text, path, &comments, entries.collect());
}

fn entry(key: String, node: Node) -> EntryText {
    let is_table = node.origin == Origin::Head;
    if let Some(value) = node.value {
        return EntryText {
            comments: node.comments,
            key,
            body: Body::Line(value),
        };
    }
    let (mut fields, mut comments) = into_fields(node, &ENTRY);
    if !is_table && let Some(first) = fields.first_mut() {
        // In `IA32_PAT.read = "allow"`, a comment above the first line stands above the whole
        // entry.
        comments.lead.append(&mut first.comments.lead);
    }
    without_paragraphs(&mut fields);
    let is_table = is_table || fields.iter().any(|field| !field.comments.is_empty());
    let body = if is_table {
        Body::Table(fields)
    } else {
        let fields = fields.into_iter().map(|field| (field.key, field.value));
        Body::Line(shortened(fields.collect()))
    };
    EntryText {
        comments,
        key,
        body,
    }
}

/// Returns the parts of a table in the order `order`, and the table's comments.
fn into_fields(table: Node, order: &[&str]) -> (Vec<Field>, Comments) {
    let comments = table.comments;
    let parts = table.parts.into_iter();
    let mut fields: Vec<_> = parts
        .map(|(key, child)| {
            let mut field = child.into_field(&key);
            sort(&mut field.value);
            field
        })
        .collect();
    fields.sort_by_key(|field| place(order, &field.key));
    (fields, comments)
}

/// Sorts the keys of all tables within a value into their canonical order.
fn sort(value: &mut Value) {
    if let Value::Table(fields) = value {
        fields.sort_by_key(|(key, _)| place(&OTHERS, key));
        for (_, value) in fields {
            sort(value);
        }
    }
}

fn place(order: &[&str], key: &str) -> usize {
    let place = order.iter().position(|known| *known == key);
    place.unwrap_or(order.len())
}

/// Removes the blank lines between the fields of a table, so that the fields are one paragraph.
fn without_paragraphs(fields: &mut [Field]) {
    for field in fields {
        field.comments.lead.retain(|line| !line.is_empty());
    }
}

#[cfg(test)]
mod tests;
