//! Parses the lines of dumps: offsets, and numbers in several notations.

use super::super::bytes_of_digits;
use super::MOST;

/// The largest length of a line in bytes: `xxd -b` may write all bytes of a filter into one.
const LONGEST: usize = 12 * MOST;

/// The notation of the offsets at the beginning of a dump's lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Offsets {
    /// Numbers of this radix.
    Radix(u32),
    /// The lines have no offsets: `xxd -p`, `od -An`.
    Absent,
}

impl Offsets {
    /// The notations of offsets: `hexdump`, `xxd` and `od -Ax` write hexadecimal ones, `od` octal ones, `od -Ad` and
    /// `xxd -d` decimal ones.
    pub(super) const RADICES: [Self; 3] = [Self::Radix(16), Self::Radix(8), Self::Radix(10)];

    pub(super) const ALL: [Self; 4] = [
        Self::Radix(16),
        Self::Radix(8),
        Self::Radix(10),
        Self::Absent,
    ];
}

/// The notation of the numbers in a dump, and the order of their bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Numbers {
    /// Hexadecimal digits in the order of the file: `hexdump -C`, `xxd`, `od -t x1`.
    Hexadecimal,
    /// Hexadecimal digits, the first byte of the file last: `hexdump`, `od -t x4`, `xxd -e`.
    HexadecimalReversed,
    /// Octal digits, the first byte of the file last: `od`, `hexdump -b`.
    Octal,
    /// Five decimal digits for two bytes, the first byte of the file last: `hexdump -d`.
    Decimal,
    /// Eight binary digits for a byte: `xxd -b`.
    Binary,
}

impl Numbers {
    pub(super) const ALL: [Self; 5] = [
        Self::Hexadecimal,
        Self::HexadecimalReversed,
        Self::Octal,
        Self::Decimal,
        Self::Binary,
    ];

    /// Returns the bytes of a number, in the order of the file. Numbers have leading zeros, so their length says how
    /// many bytes they have.
    pub(super) fn bytes(self, digits: &str) -> Option<Vec<u8>> {
        let (radix, size) = match (self, digits.len()) {
            (Self::Hexadecimal, _) => return bytes_of_digits(digits),
            (Self::HexadecimalReversed, _) => {
                let mut bytes = bytes_of_digits(digits)?;
                bytes.reverse();
                return Some(bytes);
            }
            (Self::Octal, 3) => (8, 1),
            (Self::Octal, 6) => (8, 2),
            (Self::Octal, 11) => (8, 4),
            (Self::Octal, 22) => (8, 8),
            (Self::Decimal, 5) => (10, 2),
            (Self::Binary, 8) => (2, 1),
            _ => return None,
        };
        let number = number(digits, radix)?.to_le_bytes();
        let (bytes, rest) = number.split_at(size);
        rest.iter().all(|byte| *byte == 0).then(|| bytes.to_vec())
    }
}

/// A line of a dump.
pub(super) enum Line<'t> {
    /// The line `*`: the lines up to the next offset repeat the line before.
    Repeat,
    Bytes {
        /// The offset of the bytes; `None` if the dump has no offsets.
        offset: Option<usize>,
        /// The bytes as the dump writes them: one number in each string, of one byte or of several.
        groups: Vec<&'t str>,
        /// The columns of a line of `xxd` that have the numbers, counted from the offset on.
        columns: Option<usize>,
    },
}

impl<'t> Line<'t> {
    /// Parses a line of a dump; `None` if the line has no offset of this notation. The lines of `xxd` have their numbers
    /// in the same columns: `columns` are those of the first line.
    pub(super) fn parse(line: &'t str, offsets: Offsets, columns: Option<usize>) -> Option<Self> {
        if line.len() > LONGEST {
            return None;
        }
        let text = line.trim();
        if text == "*" {
            return Some(Self::Repeat);
        }
        let Offsets::Radix(radix) = offsets else {
            // `od` writes a blank before each number, `xxd -p` one number without an end.
            let is_indented = line.starts_with([' ', '\t']);
            let groups = groups(before_bar(text));
            return (is_indented || groups.len() == 1).then_some(Self::Bytes {
                offset: None,
                groups,
                columns: None,
            });
        };
        let (head, rest) = text.split_once([' ', '\t']).unwrap_or((text, ""));
        let is_xxd = head.ends_with(':');
        let offset = head.strip_suffix(':').unwrap_or(head);
        if !(6..=16).contains(&offset.len()) {
            return None;
        }
        let digits = match columns {
            Some(columns) => rest.get(..columns.min(rest.len()))?,
            None if is_xxd => before_two_blanks(rest),
            None => before_bar(rest),
        };
        Some(Self::Bytes {
            offset: Some(usize::try_from(number(offset, radix)?).unwrap_or(usize::MAX)),
            groups: groups(digits),
            columns: is_xxd.then_some(digits.len()),
        })
    }
}

/// Returns the numbers of a line of `hexdump` or `od`. The characters of the bytes may follow, after a bar or an
/// angle bracket.
fn before_bar(text: &str) -> &str {
    text.split(['|', '>']).next().unwrap_or_default()
}

/// Returns the numbers of the first line of `xxd`. The characters of the bytes may follow, after two blanks.
fn before_two_blanks(text: &str) -> &str {
    let numbers = text.trim_start();
    let end = numbers.find("  ").unwrap_or(numbers.len());
    &text[..text.len() - numbers.len() + end]
}

fn groups(digits: &str) -> Vec<&str> {
    digits.split_ascii_whitespace().take(MOST + 1).collect()
}

fn number(digits: &str, radix: u32) -> Option<u64> {
    // `from_str_radix` would take a sign, too.
    let is_number = digits.chars().all(|digit| digit.is_digit(radix));
    is_number.then(|| u64::from_str_radix(digits, radix).ok())?
}

/// Returns true if the first line of a dump has the offset 0 and numbers or characters in a notation that
/// [`Numbers`] does not have, as of `od -c`, or is the first line that `xxd -i` writes.
pub(super) fn is_of_other_notation(line: &str) -> bool {
    let mut words = line.split_ascii_whitespace();
    let head = words.next().unwrap_or_default();
    let offset = head.strip_suffix(':').unwrap_or(head);
    let is_zero = (6..=16).contains(&offset.len()) && offset.bytes().all(|digit| digit == b'0');
    let is_of_c = line.starts_with("unsigned char ") && line.trim_end().ends_with("[] = {");
    is_zero && words.count() >= 4 || is_of_c
}
