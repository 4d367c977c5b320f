//! Reads dumps of the ioctl's bytes as text: of `hexdump -C`, `hexdump`, `xxd` and `od -t x1`.

use super::{ImportError, lines};

/// The largest number of bytes in a dump. The struct and its bitmaps have far fewer.
const MOST: usize = 0x1_0000;

/// A line of a dump.
enum Line<'t> {
    /// The line `*`: the lines up to the next offset repeat the line before.
    Repeat,
    /// The digits of an offset, and the bytes at this offset, if there are any.
    Bytes(&'t str, Vec<u8>),
}

/// Returns true if the first line with content is one of a dump: the offset 0, and at least eight bytes.
pub(super) fn is_dump(bytes: &[u8]) -> bool {
    let mut lines = lines(bytes).map(|(_, line)| line);
    let first = lines.find(|line| !line.trim().is_empty());
    first.is_some_and(|line| match parsed(&line) {
        Some(Line::Bytes(offset, bytes)) => {
            offset.bytes().all(|digit| digit == b'0') && bytes.len() >= 8
        }
        _ => false,
    })
}

/// Returns the bytes of a dump.
///
/// # Errors
/// Returns [`ImportError::Bytes`] if a line is not one of a dump, or if bytes are missing.
pub(super) fn read(bytes: &[u8]) -> Result<Vec<u8>, ImportError> {
    // `od` writes offsets in octal digits, the other tools in hexadecimal ones.
    in_radix(bytes, 16).or_else(|error| in_radix(bytes, 8).map_err(|_| error))
}

fn in_radix(dump: &[u8], radix: u32) -> Result<Vec<u8>, ImportError> {
    let wrong =
        |number: usize, why: &str| ImportError::Bytes(format!("line {number} of the dump {why}"));
    let mut all: Vec<u8> = Vec::new();
    let mut last = Vec::new();
    let mut repeats = None;
    for (number, line) in lines(dump) {
        if line.trim().is_empty() {
            continue;
        }
        let (offset, bytes) = match parsed(&line) {
            Some(Line::Repeat) => {
                repeats = Some(number);
                continue;
            }
            Some(Line::Bytes(offset, bytes)) => (offset, bytes),
            None => return Err(wrong(number, "is not an offset and hexadecimal bytes")),
        };
        let offset = usize::from_str_radix(offset, radix).ok();
        let offset = offset.filter(|offset| *offset <= MOST);
        let Some(offset) = offset else {
            return Err(wrong(number, "has an offset that no filter has"));
        };
        if repeats.take().is_some() {
            let missing = offset.saturating_sub(all.len());
            all.extend(last.iter().cycle().take(missing));
        }
        if offset != all.len() {
            let why = "does not follow the line before: bytes are missing, or are there twice";
            return Err(wrong(number, why));
        }
        all.extend(&bytes);
        last = bytes;
    }
    match repeats {
        Some(number) => Err(wrong(
            number,
            "says that lines repeat, and not how many: the dump is cut off",
        )),
        None => Ok(all),
    }
}

/// Parses a line of a dump; `None` if the line is not one.
fn parsed(line: &str) -> Option<Line<'_>> {
    let line = line.trim_end();
    if line == "*" {
        return Some(Line::Repeat);
    }
    let (head, rest) = line.split_once(' ').unwrap_or((line, ""));
    let is_xxd = head.ends_with(':');
    let offset = head.trim_end_matches(':');
    let is_offset =
        (6..=16).contains(&offset.len()) && offset.bytes().all(|digit| digit.is_ascii_hexdigit());
    if !is_offset {
        return None;
    }
    // The characters of the bytes follow them, after a bar or, by `xxd`, after two blanks.
    let digits = if is_xxd {
        rest.trim_start().split("  ").next().unwrap_or_default()
    } else {
        rest.split('|').next().unwrap_or_default()
    };
    let mut bytes = Vec::new();
    for group in digits.split_ascii_whitespace() {
        match (group.len(), u16::from_str_radix(group, 16).ok()?) {
            (2, byte) => bytes.push(u8::try_from(byte).ok()?),
            // `hexdump` without options writes words of two bytes, the lower byte first in the file.
            (4, word) if !is_xxd => bytes.extend(word.to_le_bytes()),
            (4, word) => bytes.extend(word.to_be_bytes()),
            _ => return None,
        }
    }
    Some(Line::Bytes(offset, bytes))
}
