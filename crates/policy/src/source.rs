//! The text of a policy and places in it.

use std::sync::Arc;

use miette::{NamedSource, SourceSpan};
pub(crate) use msrgate_program::quoted;
use msrgate_program::{shown, shown_name};

/// A policy's text under the name that messages give it.
#[derive(Clone, Debug)]
pub struct Source {
    name: Arc<str>,
    /// Equal for sources that are one text, whatever name each was reached by.
    identity: Arc<[u8]>,
    text: Arc<str>,
    /// Where each line begins, in bytes.
    lines: Arc<[u32]>,
}

/// A line and a column, both counted from 1; columns count characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    /// The line.
    pub line: u32,
    /// The character in it.
    pub column: u32,
}

impl Source {
    /// The text `text`, called `name` in messages: a path, or a name such as `-` for standard
    /// input. The name identifies it, too.
    #[must_use]
    pub fn new(name: &str, text: &str) -> Self {
        let starts = text.match_indices('\n').map(|(at, _)| small(at + 1));
        Self {
            name: name.into(),
            identity: name.as_bytes().into(),
            text: text.into(),
            lines: [0].into_iter().chain(starts).collect(),
        }
    }

    /// The same source, identified by these bytes in place of its name. A name is for people, and
    /// two files may share it: paths that differ in bytes that are not UTF-8 are shown alike.
    #[must_use]
    pub fn with_identity(self, identity: &[u8]) -> Self {
        Self {
            identity: identity.into(),
            ..self
        }
    }

    /// The bytes that identify it.
    #[must_use]
    pub fn identity(&self) -> &[u8] {
        &self.identity
    }

    /// What messages call it.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The text.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Where a span begins.
    #[must_use]
    pub fn place(&self, span: SourceSpan) -> Place {
        let offset = span.offset().min(self.text.len());
        let line = self
            .lines
            .partition_point(|&start| start as usize <= offset);
        let before = &self.text.as_bytes()[self.lines[line - 1] as usize..offset];
        // Counted over bytes, so that a span within a character cannot split it.
        let column = before.iter().filter(|&&byte| byte & 0xc0 != 0x80).count() + 1;
        Place {
            line: small(line),
            column: small(column),
        }
    }

    /// The lines that are longer than `limit` bytes, by number, with their lengths.
    pub(crate) fn lines_over(&self, limit: usize) -> impl Iterator<Item = (usize, usize)> {
        let lines = (1..).zip(self.text.lines().map(str::len));
        lines.filter(move |&(_, length)| length > limit)
    }

    /// The text as a message may quote it.
    pub(crate) fn quotable(&self) -> NamedSource<String> {
        NamedSource::new(shown_name(&self.name), shown(&self.text)).with_language("TOML")
    }
}

/// A text and all in it have fewer than 2^32 bytes: [`MAX_BYTES`](crate::MAX_BYTES).
pub(crate) fn small(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_count_lines_and_characters_from_one() {
        let source = Source::new("x", "aé\n\nb");
        let place = |offset: usize| {
            let Place { line, column } = source.place(SourceSpan::new(offset.into(), 1));
            (line, column)
        };
        assert_eq!(place(0), (1, 1));
        assert_eq!(place(3), (1, 3));
        assert_eq!(place(4), (2, 1));
        assert_eq!(place(5), (3, 1));
        assert_eq!(place(6), (3, 2));
        assert_eq!(place(99), (3, 2));
    }
}
