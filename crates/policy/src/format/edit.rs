//! Changes the entries of a policy's text. The rest of the text and its comments stay as they are.

use toml_edit::Document;

use super::node::Node;
use super::statement::Statements;
use super::{mistake_in, write};
use crate::layout::Value;
use crate::mistake::{MistakeKind, Mistakes};
use crate::source::Source;

/// A policy's text as a tree. Its entries outside of every `[[when]]` can be changed.
#[derive(Debug)]
pub(crate) struct Edited {
    pub(super) root: Node,
    /// The comments above the first table head or key of the text.
    pub(super) head: Vec<String>,
    /// The comments below the last table head or value of the text.
    pub(super) foot: Vec<String>,
}

impl Edited {
    /// Reads a text without mistakes. The parser's document, which takes as much memory as reading
    /// the text does, is dropped before this function returns.
    ///
    /// # Errors
    /// Returns the mistake if the text is not TOML.
    pub(crate) fn of(source: &Source) -> Result<Self, Box<Mistakes>> {
        let text = source.text();
        let document = Document::parse(text).map_err(|error| {
            let kind = MistakeKind::Syntax {
                why: error.message().to_owned(),
                help: "write the marked text in another way".to_owned(),
            };
            Box::new(mistake_in(source, error.span().unwrap_or_default(), kind))
        })?;
        let statements = Statements::of(document.as_table(), text);
        let (head, foot) = (statements.head, statements.foot);
        let root = Node::of(statements.all, text);
        Ok(Self { root, head, foot })
    }

    /// Returns the changed text in canonical form.
    pub(crate) fn into_text(self) -> String {
        write(self.root, &self.head, &self.foot)
    }

    /// The comments above the first table head or key of the text, one a line.
    pub(crate) const fn head(&mut self) -> &mut Vec<String> {
        &mut self.head
    }

    fn msrs(&mut self) -> &mut Node {
        self.root.parts.entry("msrs".to_owned()).or_default()
    }

    /// Returns true if an entry has this key, letter for letter.
    pub(crate) fn has(&self, key: &str) -> bool {
        let msrs = self.root.parts.get("msrs");
        msrs.is_some_and(|msrs| msrs.parts.contains_key(key))
    }

    /// Sets a field of an entry to a string, or removes the field. An entry that does not exist is
    /// added below the existing entries.
    pub(crate) fn set(&mut self, key: &str, field: &str, text: Option<String>) {
        let entry = self.msrs().parts.entry(key.to_owned()).or_default();
        match text {
            Some(text) => {
                let part = entry.parts.entry(field.to_owned()).or_default();
                part.value = Some(Value::Text(text));
            }
            None => drop(entry.parts.shift_remove(field)),
        }
    }

    /// If the entry says one word for both directions, such as `rw`, replaces that word by the
    /// actions `read` and `write`.
    pub(crate) fn spell_out(&mut self, key: &str, [read, write]: [&str; 2]) {
        let entry = self.msrs().parts.entry(key.to_owned()).or_default();
        if entry.value.take().is_some() {
            self.set(key, "read", Some(read.to_owned()));
            self.set(key, "write", Some(write.to_owned()));
        }
    }

    /// Sets `override = true` in an entry, so that the entry replaces an included entry of the same
    /// MSRs.
    pub(crate) fn set_override(&mut self, key: &str) {
        let entry = self.msrs().parts.entry(key.to_owned()).or_default();
        let part = entry.parts.entry("override".to_owned()).or_default();
        part.value = Some(Value::Bare("true".to_owned()));
    }

    /// Sorts the entries by the rank that `rank` returns for their keys. Entries of the same rank
    /// keep their order.
    pub(crate) fn arrange<R: Ord>(&mut self, rank: impl Fn(&str) -> R) {
        let parts = &mut self.msrs().parts;
        parts.sort_by(|one, _, other, _| rank(one).cmp(&rank(other)));
    }

    /// Begins a paragraph with this comment above the entry `first`, and removes the comment elsewhere.
    pub(crate) fn set_heading(&mut self, first: Option<&str>, comment: &str) {
        for (key, entry) in &mut self.msrs().parts {
            let lead = &mut entry.comments.lead;
            lead.retain(|line| line != comment);
            if first == Some(key) {
                lead.insert(0, comment.to_owned());
                entry.comments.begin_paragraph();
            }
        }
    }
}
