//! Display of text that does not come from msrgate itself.
//!
//! Text from the author of a policy, from a trace or from a file's name must not move the cursor of
//! a terminal, change the direction of writing, or hide something from a reviewer. [`is_shown`]
//! returns true for safe characters, and [`TextReader`] limits the marks on one character. msrgate
//! checks everything that it writes with these two.

mod marks;

use alloc::borrow::{Cow, ToOwned as _};
use alloc::string::String;
use core::fmt::Write as _;

use marks::MARKS;

/// Returns true if a person sees this character as it is, and not as a blank.
///
/// The function returns false for these characters, by the data of Unicode 16.0:
/// - the general categories Cc, Cf, Co, Zl and Zp: controls, characters that change the direction
///   of writing, private use, separators of lines;
/// - the properties `Default_Ignorable_Code_Point` and `Noncharacter_Code_Point`: variation
///   selectors, fillers, joiners, tags;
/// - vowels and final consonants of conjoining Hangul (`Hangul_Syllable_Type` V and T), which many
///   terminals draw without a width; Korean is written in whole syllables;
/// - the block of hieroglyph format controls, and blanks that are not spaces: Hangul and Khitan
///   fillers, the braille blank, the musical null notehead;
/// - all planes from plane 4 (U+40000) on, which have only such characters and unassigned ones.
///
/// A line feed and a tab are controls too: the caller that prints text of several lines has to keep
/// them. Spaces of all kinds are shown, and so is one combining mark; [`TextReader`] counts the
/// marks on one character.
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
            // Marks of the direction of writing, isolates and overrides; joiners; U+2028 and
            // U+2029.
            | '\u{61c}'
            | '\u{200b}'..='\u{200f}'
            | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}'
            // The rest of the category Cf: the soft hyphen, signs that enclose numbers, shorthand and
            // musical controls.
            | '\u{ad}'
            | '\u{600}'..='\u{605}'
            | '\u{6dd}'
            | '\u{70f}'
            | '\u{890}'..='\u{891}'
            | '\u{8e2}'
            | '\u{feff}'
            | '\u{fff0}'..='\u{fffb}'
            | '\u{110bd}'
            | '\u{110cd}'
            | '\u{13430}'..='\u{1345f}'
            | '\u{1bca0}'..='\u{1bca3}'
            | '\u{1d173}'..='\u{1d17a}'
            // The grapheme joiner, inherent vowels of Khmer, selectors of Mongolian, variation
            // selectors.
            | '\u{34f}'
            | '\u{17b4}'..='\u{17b5}'
            | '\u{180b}'..='\u{180f}'
            | '\u{fe00}'..='\u{fe0f}'
            // Fillers and parts of Hangul syllables; blanks that are not spaces.
            | '\u{115f}'..='\u{11ff}'
            | '\u{3164}'
            | '\u{d7b0}'..='\u{d7c6}'
            | '\u{d7cb}'..='\u{d7fb}'
            | '\u{ffa0}'
            | '\u{2800}'
            | '\u{16fe4}'
            | '\u{1d159}'
            // Private use, and noncharacters.
            | '\u{e000}'..='\u{f8ff}'
            | '\u{fdd0}'..='\u{fdef}'
            | '\u{fffe}'..='\u{ffff}'
            | '\u{1fffe}'..='\u{1ffff}'
            | '\u{2fffe}'..='\u{2ffff}'
            | '\u{3fffe}'..='\u{3ffff}'
            // Tags and more variation selectors, planes of private use, planes without characters.
            | '\u{40000}'..
    )
}

/// The largest number of combining marks on one character, as UTS #39 proposes. Marks have no
/// width: a hundred of them would cover the lines above and below.
const MOST_MARKS: usize = 4;

/// A reader that is given the characters of a text one after the other, and tells which of them a
/// person sees.
#[derive(Clone, Copy, Debug, Default)]
pub struct TextReader {
    /// The number of combining marks since the last character that is not a combining mark.
    marks: usize,
}

impl TextReader {
    /// Returns true if a person sees the next character as it is: the character [is
    /// shown](is_shown), and it is not the fifth or a later combining mark (general categories Mn
    /// and Me) on one character.
    ///
    /// # Examples
    /// ```
    /// use msrgate_program::TextReader;
    ///
    /// let mut reader = TextReader::default();
    /// let seen = "e\u{301}\u{301}\u{301}\u{301}\u{301}e".chars().map(|c| reader.sees(c));
    /// assert!(seen.eq([true, true, true, true, true, false, true]));
    /// ```
    pub fn sees(&mut self, c: char) -> bool {
        if c.is_ascii() || !is_mark(c) {
            self.marks = 0;
            return is_shown(c);
        }
        self.marks = self.marks.saturating_add(1);
        is_shown(c) && self.marks <= MOST_MARKS
    }
}

fn is_mark(c: char) -> bool {
    let after = MARKS.partition_point(|&(first, _)| first <= c);
    after > 0 && c <= MARKS[after - 1].1
}

/// Returns a text of several lines in which each character that a [`TextReader`] does not see is
/// replaced.
///
/// Each replacement has the same length in bytes, so that a span of the text is a span of the
/// result. Line feeds and tabs stay; a carriage return before a line feed becomes a space.
#[must_use]
pub fn shown(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    let mut reader = TextReader::default();
    for c in text.replace("\r\n", " \n").chars() {
        let is_seen = reader.sees(c);
        match c {
            '\n' | '\t' => shown.push(c),
            _ if is_seen => shown.push(c),
            _ => shown.push_str(instead(c)),
        }
    }
    shown
}

/// Returns true if a [`TextReader`] sees every character of these lines.
#[must_use]
pub fn is_seen(lines: &str) -> bool {
    let mut reader = TextReader::default();
    lines.chars().all(|c| reader.sees(c) || c == '\n')
}

/// Returns the visible text that replaces the hidden character `c`. The text is as many bytes long
/// as `c` is in UTF-8.
const fn instead(c: char) -> &'static str {
    match c.len_utf8() {
        1 => "?",
        2 => "\u{b7}",
        3 => "\u{fffd}",
        _ => "\u{b7}\u{b7}",
    }
}

/// Returns the text for use within one line: the text that [`shown`] returns, with spaces for line
/// feeds and tabs.
#[must_use]
pub fn one_line(text: &str) -> String {
    shown(text).replace(['\n', '\t'], " ")
}

/// Returns the text for a quotation in a message: the text that [`one_line`] returns. A text of
/// more than 80 characters is cut after the 80th, and `…` follows.
#[must_use]
pub fn quoted(text: &str) -> String {
    const MOST: usize = 80;
    let mut quoted = one_line(text);
    if let Some((end, _)) = quoted.char_indices().nth(MOST) {
        quoted.truncate(end);
        quoted.push('…');
    }
    quoted
}

/// Returns the name of a file for use within one line, so that different names look different.
///
/// Characters that a [`TextReader`] does not see, and blanks other than the space, become escapes:
/// `\n`, `\t`, `\x1b`, `\u{202e}`. If a name gets an escape, or has text that looks like one, each
/// backslash in it is doubled. The name is never cut, because names may differ only at one end.
///
/// # Examples
/// ```
/// use msrgate_program::shown_name;
///
/// assert_eq!(shown_name("größe.toml"), "größe.toml");
/// assert_eq!(shown_name("a\u{1b}\n.toml"), r"a\x1b\n.toml");
/// ```
#[must_use]
pub fn shown_name(name: &str) -> String {
    if is_plain(name) {
        return name.to_owned();
    }
    let mut reader = TextReader::default();
    let mut shown = String::with_capacity(name.len());
    for c in name.chars() {
        // Writing to a `String` never fails.
        let _ = match c {
            _ if reader.sees(c) && c != '\\' && !is_odd_blank(c) => shown.write_char(c),
            '\\' => shown.write_str("\\\\"),
            '\n' => shown.write_str("\\n"),
            '\t' => shown.write_str("\\t"),
            _ if c.is_ascii() => write!(shown, "\\x{:02x}", u32::from(c)),
            _ => write!(shown, "\\u{{{:x}}}", u32::from(c)),
        };
    }
    shown
}

/// Returns true if [`shown_name`] may return the name as it is: a person sees each character, and
/// no part of the name looks like an escape. `\x80` to `\xff` do not look like escapes, because
/// [`shown_name`] never writes them.
fn is_plain(name: &str) -> bool {
    let looks_escaped = |after: &str| match *after.as_bytes() {
        [b'n' | b't', ..] | [b'u', b'{', ..] => true,
        [b'x', high, low, ..] => matches!(high, b'0'..=b'7') && low.is_ascii_hexdigit(),
        _ => false,
    };
    let mut reader = TextReader::default();
    name.chars().all(|c| reader.sees(c) && !is_odd_blank(c))
        && !name.split('\\').skip(1).any(looks_escaped)
}

/// Returns true for blanks other than the space, such as U+00A0, which looks like a space.
fn is_odd_blank(c: char) -> bool {
    c.is_whitespace() && c != ' '
}

/// Returns true for the names that msrgate gives to texts that are not files: `standard input`, and
/// the names of shipped policies. A file with such a name is shown with its folder:
/// `./standard input`.
#[must_use]
pub fn is_no_file(name: &str) -> bool {
    name == "standard input" || (name.ends_with(" (shipped)") && !name.contains('/'))
}

/// Returns the text `json` with `\u` escapes in place of the characters that a [`TextReader`] does not
/// see.
///
/// In JSON all such characters are within strings, except for line feeds. Line feeds stay as they
/// are.
#[must_use]
pub fn shown_json(json: &str) -> Cow<'_, str> {
    if is_seen(json) {
        return json.into();
    }
    let mut reader = TextReader::default();
    let mut escaped = String::with_capacity(json.len());
    for c in json.chars() {
        if reader.sees(c) || c == '\n' {
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
    use alloc::collections::BTreeSet;
    use alloc::vec;
    use alloc::vec::Vec;

    use super::*;

    #[test]
    fn shown_replaces_hidden_characters_by_text_of_equal_length() {
        for c in ('\0'..=char::MAX).filter(|&c| !is_shown(c) && !"\n\t".contains(c)) {
            let text = format!("a{c}b");
            let shown = shown(&text);
            assert_eq!(shown.len(), text.len(), "{c:?}");
            assert!(is_seen(&shown), "{c:?}");
        }
    }

    #[test]
    fn shown_replaces_fifth_combining_mark_on_a_character() {
        let heap = |mark: &str, count| format!("a{}b", mark.repeat(count));
        for mark in ["\u{301}", "\u{e47}", "\u{1abe}", "\u{1e94a}"] {
            let four = heap(mark, 4);
            assert_eq!(shown(&four), four, "{mark:?}");
            let hundred = heap(mark, 100);
            let shown = shown(&hundred);
            assert_eq!(shown.len(), hundred.len(), "{mark:?}");
            assert_eq!(shown.matches(mark).count(), 4, "{mark:?}");
            assert!(is_seen(&shown), "{mark:?}");
        }
        assert_eq!(
            shown_json(&heap("\u{301}", 5)),
            format!("{}\\u0301b", &heap("\u{301}", 4)[..9])
        );
    }

    #[test]
    fn is_shown_accepts_letters_of_all_scripts() {
        for c in "aé ßЖ中한ก\u{301}क\u{94d}⚠😀\u{a0}\u{3000}\u{fffd}".chars() {
            assert!(is_shown(c), "{c:?}");
        }
    }

    #[test]
    fn one_line_has_no_line_feed() {
        assert_eq!(
            shown("a\u{1b}[31m\r\u{9b}b\u{202e}c\n"),
            "a?[31m?\u{b7}b\u{fffd}c\n"
        );
        assert_eq!(shown("a\r\nb\rc"), "a \nb?c");
        assert_eq!(one_line("a\tb\u{202e}\nc"), "a b\u{fffd} c");
    }

    #[test]
    fn shown_name_escapes_hidden_characters() {
        for (name, wanted) in [
            ("d/x.toml", "d/x.toml"),
            ("größe 1.toml", "größe 1.toml"),
            ("a\\b.toml", "a\\b.toml"),
            // This is the text of a name with the byte 0xff, which is not UTF-8: the caller has already
            // replaced the byte by an escape.
            ("d\\xff/x.toml", "d\\xff/x.toml"),
            ("a\u{1b}.toml", "a\\x1b.toml"),
            ("a\u{1}\u{7f}\u{9b}.toml", "a\\x01\\x7f\\u{9b}.toml"),
            ("a\nb\tc\r", "a\\nb\\tc\\x0d"),
            ("a\u{202e}\u{e0041}", "a\\u{202e}\\u{e0041}"),
            (
                "e\u{301}\u{301}\u{301}\u{301}\u{301}",
                "e\u{301}\u{301}\u{301}\u{301}\\u{301}",
            ),
            ("a\\b\u{1b}", "a\\\\b\\x1b"),
            ("C:\\new", "C:\\\\new"),
            ("a\\x1b.toml", "a\\\\x1b.toml"),
            ("a\u{a0}b\u{3000}", "a\\u{a0}b\\u{3000}"),
        ] {
            assert_eq!(shown_name(name), wanted);
        }
        let long = "d/".repeat(100);
        assert_eq!(shown_name(&long), long);
    }

    #[test]
    fn shown_name_differs_for_different_names() {
        const PARTS: [&str; 12] = [
            "\\", "x", "1b", "n", "u{1b}", "\u{1b}", "\n", "\t", " ", "?", "\u{85}", "\\xff",
        ];
        let mut names = vec![String::new()];
        for _ in 0..4 {
            let longer = names
                .iter()
                .flat_map(|name| PARTS.map(|part| name.clone() + part));
            let longer: Vec<_> = longer.collect();
            names.extend(longer);
        }
        let names: BTreeSet<_> = names.into_iter().collect();
        let shown: BTreeSet<_> = names.iter().map(|name| shown_name(name)).collect();
        assert_eq!(shown.len(), names.len());
        assert!(
            shown
                .iter()
                .all(|name| is_seen(name) && !name.contains('\n'))
        );
    }

    #[test]
    fn quoted_text_has_at_most_80_characters() {
        assert_eq!(quoted("a\nb"), "a b");
        assert_eq!(quoted(&"é".repeat(81)), format!("{}…", "é".repeat(80)));
        assert_eq!(quoted(&"é".repeat(80)), "é".repeat(80));
    }

    #[test]
    fn shown_json_escapes_hidden_characters_and_keeps_all_others() {
        assert_eq!(
            shown_json("{\n  \"a\u{7f}\u{e0041}é\"}"),
            "{\n  \"a\\u007f\\udb40\\udc41é\"}"
        );
        assert!(matches!(shown_json("{\n}"), Cow::Borrowed(_)));
    }
}
