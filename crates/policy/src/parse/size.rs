//! The size of a policy, counted before memory is spent on what is in it.

use toml_parser::lexer::TokenKind;
use toml_parser::parser::{RecursionGuard, ValidateWhitespace, parse_document};
use toml_parser::{ParseError, Source as Toml};

use super::{MAX_BYTES, MAX_MISTAKES, MAX_TABLES, MAX_TOKENS};
use crate::mistake::Wrong;

/// How deep TOML's parser follows arrays and tables in each other.
const MAX_NESTING: u32 = 80;

/// All texts of a policy that were read so far, together.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Size {
    bytes: usize,
    tokens: usize,
    /// Tables, arrays, and dots, each of which may be one more table.
    tables: usize,
}

impl Size {
    /// Counts one more text.
    ///
    /// # Errors
    /// With this text the policy is larger than one may be.
    pub(super) fn add(&mut self, text: &str) -> Result<(), Wrong> {
        self.bytes += text.len();
        if self.bytes > MAX_BYTES {
            let (bytes, limit) = (self.bytes, MAX_BYTES);
            return Err(Wrong::TooLong { bytes, limit });
        }
        for token in Toml::new(text).lex() {
            self.tokens += 1;
            self.tables += usize::from(matches!(
                token.kind(),
                TokenKind::Dot | TokenKind::LeftSquareBracket | TokenKind::LeftCurlyBracket
            ));
        }
        let counted = [
            ("tokens of TOML", self.tokens, MAX_TOKENS),
            ("tables and lists", self.tables, MAX_TABLES),
        ];
        match counted.into_iter().find(|(_, found, limit)| found > limit) {
            None => Ok(()),
            Some((what, found, limit)) => Err(Wrong::TooMany { what, found, limit }),
        }
    }
}

/// The text up to the last mistake of TOML that is reported. Each of those costs the parser far more
/// memory than the byte that is wrong.
pub(super) fn to_the_last_mistake(text: &str) -> &str {
    let toml = Toml::new(text);
    let tokens = toml.lex().into_vec();
    let (mut mistakes, mut end) = (0, None);
    let mut count = |error: ParseError| {
        mistakes += 1;
        if mistakes == MAX_MISTAKES {
            end = error.unexpected().map(|span| span.end());
        }
    };
    let mut nothing = ();
    let mut receiver = ValidateWhitespace::new(&mut nothing, toml);
    let mut receiver = RecursionGuard::new(&mut receiver, MAX_NESTING);
    parse_document(&tokens, &mut receiver, &mut count);
    end.and_then(|end| text.get(..end)).unwrap_or(text)
}
