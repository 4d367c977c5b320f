//! The layout of TOML strings.

use std::fmt::Write as _;

use msrgate_program::TextReader;

/// The column before which a string of several lines is broken between words.
const COLUMN: usize = 100;

/// Returns a string on one line.
pub(crate) fn string(text: &str) -> String {
    let mut quoted = "\"".to_owned();
    let mut reader = TextReader::default();
    for c in text.chars() {
        let is_seen = reader.sees(c);
        match c {
            '"' => quoted.push_str("\\\""),
            '\n' => quoted.push_str("\\n"),
            _ if is_seen && c != '\\' => quoted.push(c),
            _ => escape(&mut quoted, c),
        }
    }
    quoted + "\""
}

fn escape(text: &mut String, c: char) {
    match c {
        '\\' => text.push_str("\\\\"),
        '\t' => text.push_str("\\t"),
        ..='\u{ffff}' => _ = write!(text, "\\u{:04x}", u32::from(c)),
        _ => _ = write!(text, "\\U{:08x}", u32::from(c)),
    }
}

/// Returns a string on lines of its own: the text's own lines, with long ones broken between words.
/// No line exceeds the maximum length of a line of a policy.
pub(super) fn block(text: &str) -> String {
    let mut block = "\"\"\"\n".to_owned();
    let mut column = 0;
    let mut before = '\n';
    let mut rest = text.chars();
    let mut reader = TextReader::default();
    while let Some(c) = rest.next() {
        let is_seen = reader.sees(c);
        if c == '\n' {
            block.push('\n');
            (column, before) = (0, c);
            continue;
        }
        let word = rest.as_str().chars().take_while(|c| !c.is_whitespace());
        let starts_word = before == ' ' && column + 1 + word.take(COLUMN).count() > COLUMN;
        let is_broken = column > 0 && (starts_word || column >= COLUMN);
        if is_broken {
            block.push_str("\\\n");
            column = 0;
        }
        let next = rest.as_str().chars().next();
        if is_broken && c == ' ' {
            // A line break in TOML swallows the blanks that follow, so a blank is escaped.
            block.push_str("\\u0020");
        } else if c == '"' && (before == '"' || matches!(next, Some('"') | None)) {
            block.push_str("\\\"");
        } else if is_seen && c != '\\' {
            block.push(c);
        } else {
            escape(&mut block, c);
        }
        column += 1;
        before = c;
    }
    block + "\"\"\""
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use toml::de::{DeTable, DeValue};

    use super::*;

    use msrgate_program::is_seen;

    fn read(text: &str) -> String {
        let text = format!("x = {text}\n");
        let table = DeTable::parse(&text).expect("TOML");
        match table.get_ref()["x"].get_ref() {
            DeValue::String(text) => text.to_string(),
            other => panic!("{other:?}"),
        }
    }

    proptest! {
        #[test]
        fn layout_string_writes_toml_string_that_is_read_as_same_text(text in "([a-z\"\\\\ \t\r\n]|\\PC|\\pC|\\p{M}{1,9}| {1,200}|x{1,300}){0,40}") {
            prop_assert_eq!(read(&string(&text)), text.clone());
            prop_assert!(is_seen(&string(&text)));
            let block = block(&text);
            prop_assert!(is_seen(&block));
            prop_assert_eq!(read(&block), text);
        }

        #[test]
        fn layout_string_keeps_lines_within_limit(text in "([a-z ]{1,2000}|\\PC{500}|[\\x{e0041}]{500}){0,8}") {
            let longest = block(&text).lines().map(str::len).max();
            prop_assert!(longest <= Some(11 * COLUMN));
        }
    }

    #[test]
    fn layout_string_breaks_long_text_between_words() {
        let text = format!("{}end \"quoted\"\nline", "word ".repeat(25));
        insta::assert_snapshot!(block(&text));
    }
}
