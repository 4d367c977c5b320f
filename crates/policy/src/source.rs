//! A policy's text, and places in it.

use std::sync::Arc;

use miette::{NamedSource, SourceSpan};
pub(crate) use msrgate_program::quoted;
use msrgate_program::{shown, shown_name};

/// A policy's text, with the name that messages use for it.
#[derive(Clone, Debug)]
pub struct Source {
    name: Arc<str>,
    /// The identity: equal for sources that are the same text, even if they were reached by
    /// different names.
    identity: Arc<[u8]>,
    text: Arc<str>,
    /// The offset of each line's beginning, in bytes.
    lines: Arc<[u32]>,
}

/// A line and a column, both counted from 1; columns count characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    /// The number of the line in the text.
    pub line: u32,
    /// The column: the number of the character in the line.
    pub column: u32,
}

impl Source {
    /// Returns the source with this text. `name` is used in messages: a path, or `-` for standard
    /// input. The name is also the source's identity.
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

    /// Replaces the identity, which otherwise is the name. Names are for people, and two files may
    /// have the same one: paths that differ only in bytes that are not UTF-8 look alike.
    #[must_use]
    pub fn with_identity(self, identity: &[u8]) -> Self {
        Self {
            identity: identity.into(),
            ..self
        }
    }

    /// Returns a source with the same name and identity, and this text.
    #[must_use]
    pub(crate) fn with_text(&self, text: &str) -> Self {
        Self {
            identity: Arc::clone(&self.identity),
            ..Self::new(&self.name, text)
        }
    }

    /// The bytes that identify the source.
    #[must_use]
    pub fn identity(&self) -> &[u8] {
        &self.identity
    }

    /// The name that messages use for the text.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The whole text of the policy, or of a file that it includes.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Returns the place in the text at which a span begins.
    #[must_use]
    pub fn place(&self, span: SourceSpan) -> Place {
        let offset = span.offset().min(self.text.len());
        let line = self
            .lines
            .partition_point(|&start| start as usize <= offset);
        let before = &self.text.as_bytes()[self.lines[line - 1] as usize..offset];
        // This counts bytes, so that a span within a character cannot split the character.
        let column = before.iter().filter(|&&byte| byte & 0xc0 != 0x80).count() + 1;
        Place {
            line: small(line),
            column: small(column),
        }
    }

    /// Returns the number and the length in bytes of each line that is longer than `limit` bytes.
    pub(crate) fn lines_over(&self, limit: usize) -> impl Iterator<Item = (usize, usize)> {
        let lines = (1..).zip(self.text.lines().map(str::len));
        lines.filter(move |&(_, length)| length > limit)
    }

    /// Returns the text in the form in which a message may quote it.
    pub(crate) fn quotable(&self) -> NamedSource<String> {
        NamedSource::new(shown_name(&self.name), shown(&self.text)).with_language("TOML")
    }
}

/// Converts an offset or a number of lines in a text to 32 bits. The number fits, because a text
/// has at most [`MAX_BYTES`](crate::MAX_BYTES).
pub(crate) fn small(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn source_place_counts_lines_and_characters_from_one() {
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
