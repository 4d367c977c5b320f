//! Text of others, as a person may be shown it.
//!
//! A policy's author, a trace or a file's name must not move the cursor of a terminal, turn the direction
//! of writing, or hide what a reviewer should see. [`is_shown`] says which characters are safe; all that
//! msrgate writes goes by it.

use alloc::borrow::Cow;
use alloc::string::String;
use core::fmt::Write as _;

/// Returns true if a person sees this character as it is: false for controls, for what turns the direction of
/// writing, for separators of lines, and for what has no width, the tag characters among them.
///
/// A line feed and a tab are controls, too: whoever prints text of several lines keeps them.
/// Combining characters and the variation selectors of emoji are shown.
///
/// # Examples
/// ```
/// use msrgate_program::is_shown;
///
/// assert!(is_shown('é'));
/// assert!(!is_shown('\u{202e}'));
/// ```
#[must_use]
pub const fn is_shown(c: char) -> bool {
    !matches!(
        c,
        // C0, DEL and C1.
        '\0'..='\u{1f}'
            | '\u{7f}'..='\u{9f}'
            // Marks of the direction of writing, isolates and overrides; U+2028 and U+2029.
            | '\u{61c}'
            | '\u{200e}'..='\u{200f}'
            | '\u{2028}'..='\u{202e}'
            | '\u{2066}'..='\u{206f}'
            // No width: soft hyphen, joiners, fillers, invisible operators, the byte order mark.
            | '\u{ad}'
            | '\u{34f}'
            | '\u{115f}'..='\u{1160}'
            | '\u{17b4}'..='\u{17b5}'
            | '\u{180b}'..='\u{180f}'
            | '\u{200b}'..='\u{200d}'
            | '\u{2060}'..='\u{2065}'
            | '\u{3164}'
            | '\u{feff}'
            | '\u{ffa0}'
            | '\u{fff0}'..='\u{fffb}'
            | '\u{1bca0}'..='\u{1bca3}'
            | '\u{1d173}'..='\u{1d17a}'
            // Tags, and the variation selectors that carry hidden bytes.
            | '\u{e0000}'..='\u{e0fff}'
    )
}

/// Text of several lines, with another character in the place of each that is not [shown](is_shown). Each
/// keeps its length in bytes, so that a span of the text is one of the result. Line feeds and tabs stay;
/// the return before a line feed becomes a space.
#[must_use]
pub fn shown(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for c in text.replace("\r\n", " \n").chars() {
        match c {
            '\n' | '\t' => shown.push(c),
            _ if is_shown(c) => shown.push(c),
            _ => shown.push_str(instead(c)),
        }
    }
    shown
}

/// Returns a visible text of the length that `c` has in UTF-8.
const fn instead(c: char) -> &'static str {
    match c.len_utf8() {
        1 => "?",
        2 => "\u{b7}",
        3 => "\u{fffd}",
        _ => "\u{b7}\u{b7}",
    }
}

/// Text as a part of one line: as [`shown`], with spaces for line feeds and tabs.
#[must_use]
pub fn one_line(text: &str) -> String {
    shown(text).replace(['\n', '\t'], " ")
}

/// The same JSON, with `\u` escapes for the characters that are not [shown](is_shown). All of these stand
/// within strings, but for line feeds, which stay.
#[must_use]
pub fn shown_json(json: &str) -> Cow<'_, str> {
    let is_kept = |c: char| c == '\n' || is_shown(c);
    if json.chars().all(is_kept) {
        return json.into();
    }
    let mut escaped = String::with_capacity(json.len());
    for c in json.chars() {
        if is_kept(c) {
            escaped.push(c);
            continue;
        }
        for unit in c.encode_utf16(&mut [0; 2]) {
            let _ = write!(escaped, "\\u{unit:04x}");
        }
    }
    escaped.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One of each kind, with its number of bytes.
    const HIDDEN: [char; 24] = [
        '\u{1b}',
        '\r',
        '\u{7f}',
        '\u{85}',
        '\u{9b}',
        '\u{ad}',
        '\u{61c}',
        '\u{200b}',
        '\u{200d}',
        '\u{200f}',
        '\u{2028}',
        '\u{2029}',
        '\u{202a}',
        '\u{202e}',
        '\u{2060}',
        '\u{2066}',
        '\u{2069}',
        '\u{3164}',
        '\u{feff}',
        '\u{fff9}',
        '\u{1d173}',
        '\u{e0001}',
        '\u{e0041}',
        '\u{e01ef}',
    ];

    #[test]
    fn hidden_characters_are_replaced_at_their_length() {
        for c in HIDDEN {
            assert!(!is_shown(c), "{c:?}");
            let text = format!("a{c}b");
            let shown = shown(&text);
            assert_eq!(shown.len(), text.len(), "{c:?}");
            assert!(shown.chars().all(is_shown), "{c:?}");
        }
    }

    #[test]
    fn letters_of_all_scripts_are_shown() {
        for c in "aé ßЖ中ก\u{301}\u{fe0f}⚠😀\u{a0}\u{3000}\u{fffd}".chars() {
            assert!(is_shown(c), "{c:?}");
        }
    }

    #[test]
    fn a_line_has_no_line_feed() {
        assert_eq!(
            shown("a\u{1b}[31m\r\u{9b}b\u{202e}c\n"),
            "a?[31m?\u{b7}b\u{fffd}c\n"
        );
        assert_eq!(shown("a\r\nb\rc"), "a \nb?c");
        assert_eq!(one_line("a\tb\u{202e}\nc"), "a b\u{fffd} c");
    }

    #[test]
    fn escaped_json_has_the_same_value() {
        assert_eq!(
            shown_json("{\n  \"a\u{7f}\u{e0041}é\"}"),
            "{\n  \"a\\u007f\\udb40\\udc41é\"}"
        );
        assert!(matches!(shown_json("{\n}"), Cow::Borrowed(_)));
    }
}
