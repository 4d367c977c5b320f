//! Measures the size of a policy before memory is spent on its content.

use std::cell::Cell;

use toml_parser::lexer::TokenKind;
use toml_parser::parser::{Event, EventKind, RecursionGuard, ValidateWhitespace, parse_document};
use toml_parser::{ParseError, Source as Toml};

use crate::limits::{MAX_BYTES, MAX_MISTAKES, MAX_TABLES, MAX_TOKENS};
use crate::mistake::MistakeKind;

/// The depth to which TOML's parser follows nested arrays and tables.
const MAX_NESTING: u32 = 80;

/// The size of all texts of a policy that were read so far.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Size {
    bytes: usize,
    /// The number of tokens, without blanks within a line.
    tokens: usize,
    /// The number of tables, arrays, and dots. Each dot may create a table.
    tables: usize,
}

impl Size {
    /// Adds the size of one more text.
    ///
    /// # Errors
    /// Returns a mistake if the policy exceeds a limit with this text.
    pub(super) fn add(&mut self, text: &str) -> Result<(), MistakeKind> {
        self.bytes += text.len();
        if self.bytes > MAX_BYTES {
            let (bytes, limit) = (self.bytes, MAX_BYTES);
            return Err(MistakeKind::TooLong { bytes, limit });
        }
        for token in Toml::new(text).lex() {
            match token.kind() {
                TokenKind::Whitespace => {}
                TokenKind::Dot | TokenKind::LeftSquareBracket | TokenKind::LeftCurlyBracket => {
                    self.tokens += 1;
                    self.tables += 1;
                }
                _ => self.tokens += 1,
            }
        }
        let counted = [
            ("tokens of TOML", self.tokens, MAX_TOKENS),
            ("tables and lists", self.tables, MAX_TABLES),
        ];
        match counted.into_iter().find(|(_, found, limit)| found > limit) {
            None => Ok(()),
            Some((what, found, limit)) => Err(MistakeKind::TooMany { what, found, limit }),
        }
    }
}

/// Returns the text up to the last TOML mistake that is reported. Each mistake costs the parser
/// far more memory than the byte that causes it.
pub(super) fn to_the_last_mistake(text: &str) -> &str {
    // If each line is valid by itself, the text is valid, and the check needs memory for one line
    // only. The tokens of the whole text would raise the peak of memory.
    if text.lines().all(|line| mistakes(line).found == 0) {
        return text;
    }
    let is_boundary = |end: &usize| text.is_char_boundary(*end);
    let end = mistakes(text).end_of_last;
    let end = end.and_then(|end| (end..=text.len()).find(is_boundary));
    &text[..end.unwrap_or(text.len())]
}

/// The TOML mistakes of a text.
struct TomlMistakes {
    found: usize,
    /// The offset, in bytes, of the end of mistake number [`MAX_MISTAKES`], the last one that is
    /// reported. `None`: the text has fewer mistakes.
    end_of_last: Option<usize>,
}

fn mistakes(text: &str) -> TomlMistakes {
    let toml = Toml::new(text);
    let (found, end) = (Cell::new(0), Cell::new(None));
    let count = |error: ParseError| {
        found.set(found.get() + 1);
        if found.get() == MAX_MISTAKES {
            end.set(error.unexpected().map(|span| span.end()));
        }
    };
    let mut values = |event: Event| {
        let raw = toml.get(event);
        match (event.kind(), raw) {
            (EventKind::SimpleKey, Some(raw)) => raw.decode_key(&mut (), &mut &count),
            (EventKind::Scalar, Some(raw)) => _ = raw.decode_scalar(&mut (), &mut &count),
            _ => {}
        }
    };
    let mut receiver = ValidateWhitespace::new(&mut values, toml);
    let mut receiver = RecursionGuard::new(&mut receiver, MAX_NESTING);
    parse_document(&toml.lex().into_vec(), &mut receiver, &mut &count);
    TomlMistakes {
        found: found.get(),
        end_of_last: end.get(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn size_check_cuts_text_after_last_reported_mistake() {
        // Each line has two mistakes: no key, and no value.
        let text = "=\n".repeat(MAX_MISTAKES);
        assert_eq!(to_the_last_mistake(&text).len(), MAX_MISTAKES - 1);
        let text = format!("a = \"{}\"", "\\é".repeat(2 * MAX_MISTAKES));
        let ends = "a = \"".len() + MAX_MISTAKES * "\\é".len();
        assert!(to_the_last_mistake(&text).len().abs_diff(ends) <= 2);
        let text = "a = 1\n".repeat(3);
        assert_eq!(to_the_last_mistake(&text), text);
        // In the texts below, no line is valid by itself.
        let text = format!("a = [\n{}]\n", "\"\"\"\n=\n\"\"\",\n".repeat(MAX_MISTAKES));
        assert_eq!(to_the_last_mistake(&text), text);
        let text = format!("a = [\n{}", "=,\n".repeat(2 * MAX_MISTAKES));
        assert!(to_the_last_mistake(&text).len() < text.len());
    }

    #[test]
    fn size_check_adds_sizes_of_all_texts() {
        let mut size = Size::default();
        // The tokens are a key, `=`, a value, and the end of the line; blanks do not count.
        assert_eq!(size.add("a.b = [ { } ] \n"), Ok(()));
        let Size {
            bytes,
            tokens,
            tables,
        } = size;
        // The end of the text is a token, too.
        assert_eq!((bytes, tokens, tables), (15, 10, 3));
        let commas = ",".repeat(MAX_TOKENS - 10);
        let found = MAX_TOKENS + 1;
        let (what, limit) = ("tokens of TOML", MAX_TOKENS);
        assert_eq!(
            size.add(&commas),
            Err(MistakeKind::TooMany { what, found, limit })
        );
        let mut size = Size::default();
        let (what, limit) = ("tables and lists", MAX_TABLES);
        let found = MAX_TABLES + 1;
        assert_eq!(size.add(&".".repeat(limit)), Ok(()));
        assert_eq!(
            size.add("["),
            Err(MistakeKind::TooMany { what, found, limit })
        );
        let mut size = Size::default();
        let (bytes, limit) = (MAX_BYTES + 1, MAX_BYTES);
        assert_eq!(size.add(&"#".repeat(limit)), Ok(()));
        assert_eq!(size.add("\n"), Err(MistakeKind::TooLong { bytes, limit }));
    }
}
