//! Undoes to a line of a trace what mail programs do to it: marks of a quotation, no-break spaces,
//! and the encoding quoted-printable.

use std::borrow::Cow;

use memchr::memchr2;

use super::{Line, parse_line};

/// Returns a line without the marks of a quoted mail.
pub(super) fn unquoted(mut line: &[u8]) -> &[u8] {
    while let Some(rest) = line.strip_prefix(b">") {
        line = rest.trim_ascii_start();
    }
    line
}

/// Returns the content of a line, and the text in which an access stands: the line itself, or the
/// line as it was before a mail program encoded it.
pub(super) fn parse(line: &[u8]) -> (Line, Cow<'_, [u8]>) {
    let parsed = parse_line(line);
    if parsed == Line::Unreadable
        && memchr2(b'=', 0xa0, line).is_some()
        && !line.trim_ascii_start().starts_with(b"{")
    {
        let plain = decoded(line);
        let decoded = parse_line(&plain);
        if matches!(decoded, Line::Access(_)) {
            return (decoded, Cow::Owned(plain));
        }
    }
    (parsed, Cow::Borrowed(line))
}

/// Returns the access in two lines into which a mail program has broken an event: at a blank, or,
/// with a `=` at the end of the first line, at any place.
pub(super) fn joined(first: &[u8], second: &[u8]) -> Option<(Line, Vec<u8>)> {
    let second = unquoted(second.trim_ascii_start());
    let at_blank = [first, b" ", second].concat();
    let soft = first.trim_ascii_end().strip_suffix(b"=");
    let anywhere = soft.map(|first| [first, second].concat());
    let accesses = [Some(at_blank), anywhere].into_iter().flatten();
    let mut accesses = accesses.filter_map(|text| {
        let (line, text) = parse(&text);
        matches!(line, Line::Access(_)).then(|| (line, text.into_owned()))
    });
    accesses.next()
}

/// Decodes quoted-printable, `=3D` for `=`, and turns no-break spaces of UTF-8 and of Latin-1 into
/// blanks.
fn decoded(line: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(line.len());
    let mut rest = line;
    while let Some((&byte, after)) = rest.split_first() {
        let code = rest.get(1..3).filter(|_| byte == b'=').and_then(code);
        let (byte, after) = match code {
            Some(code) => (code, &rest[3..]),
            None => (byte, after),
        };
        rest = after;
        if byte != 0xa0 {
            plain.push(byte);
            continue;
        }
        match plain.last_mut() {
            Some(last @ 0xc2) => *last = b' ',
            // The byte is a part of another character.
            Some(0x80..) => plain.push(byte),
            _ => plain.push(b' '),
        }
    }
    plain
}

/// Returns the byte that two hexadecimal digits in capitals stand for.
fn code(digits: &[u8]) -> Option<u8> {
    let is_digit = |digit: &u8| matches!(digit, b'0'..=b'9' | b'A'..=b'F');
    let text = std::str::from_utf8(digits).ok()?;
    let byte = u8::from_str_radix(text, 16).ok()?;
    // The codes of control characters are no part of a line.
    (digits.iter().all(is_digit) && (byte >= b' ' || byte == b'\t')).then_some(byte)
}
