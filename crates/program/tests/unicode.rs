//! Comparison of the shown characters and the combining marks with the data of Unicode.

use msrgate_program::{TextReader, is_shown};
use regex_syntax::hir::{Class, HirKind};

/// Returns the characters that a character class of a regular expression contains, as ascending ranges.
fn ranges(class: &str) -> Vec<(char, char)> {
    let hir = regex_syntax::parse(class).expect("a class");
    let class = match hir.kind() {
        HirKind::Class(Class::Unicode(class)) => Some(class),
        _ => None,
    };
    let ranges = class.expect("a class of characters").ranges().iter();
    ranges.map(|range| (range.start(), range.end())).collect()
}

/// Returns the characters for which `is_in` is true, as ascending ranges.
fn ranges_of(mut is_in: impl FnMut(char) -> bool) -> Vec<(char, char)> {
    let mut ranges: Vec<(char, char)> = Vec::new();
    let mut before = None;
    for c in '\0'..=char::MAX {
        match ranges.last_mut() {
            _ if !is_in(c) => {}
            Some((_, last)) if Some(*last) == before => *last = c,
            _ => ranges.push((c, c)),
        }
        before = Some(c);
    }
    ranges
}

#[test]
fn is_shown_refuses_exactly_the_hidden_character_classes_of_unicode() {
    let hidden = r"[
        \p{Cc}\p{Cf}\p{Co}\p{Zl}\p{Zp}
        \p{Default_Ignorable_Code_Point}\p{Noncharacter_Code_Point}
        [[\p{gcb=V}\p{gcb=T}]&&\p{Hangul}]
        \x{13430}-\x{1345f}
        \x{2800}\x{3164}\x{ffa0}\x{16fe4}\x{1d159}
        \x{40000}-\x{10ffff}
    ]";
    assert_eq!(
        ranges_of(|c| !is_shown(c)),
        ranges(&format!("(?x){hidden}"))
    );
}

/// Those planes of Unicode for which [`is_shown`] always returns false contain only hidden
/// characters.
#[test]
fn unicode_planes_that_is_shown_refuses_as_a_whole_have_no_visible_character() {
    let hidden = r"[[\p{Cn}\p{Co}\p{Default_Ignorable_Code_Point}]&&[\x{40000}-\x{10ffff}]]";
    assert_eq!(ranges(hidden), [('\u{40000}', char::MAX)]);
}

#[test]
fn combining_marks_match_unicode_data() {
    let is_counted = |c: char| {
        let mut reader = TextReader::default();
        [c; 5].map(|c| reader.sees(c)).ends_with(&[true, false])
    };
    let shown: Vec<_> = ranges(r"[\p{Mn}\p{Me}]");
    let shown = ranges_of(|c| is_shown(c) && shown.iter().any(|&(a, b)| a <= c && c <= b));
    assert_eq!(ranges_of(is_counted), shown);
}
