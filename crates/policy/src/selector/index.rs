//! Spellings of the index of an MSR. A policy has `0xc0010015`; people and manuals also write
//! `3221291029`, `c0010015`, `C0010015h` and `MSRC001_0015`.

use msrgate_filter::MsrIndex;

use super::{SelectorError, named};
use crate::source::quoted;

/// The reason for which digits alone are not an index.
const WHY: &str = "an index is hexadecimal and begins with `0x`";

/// The reason for which a number is not an index.
const TOO_LONG: &str = "an index has at most 32 bits";

/// Parses an index as policies have it, or a name.
pub(super) fn parse_index(text: &str) -> Result<MsrIndex, SelectorError> {
    let bad = |why, instead: &[u32]| {
        Err(SelectorError::BadIndex {
            text: quoted(text),
            why,
            instead: instead.iter().map(|index| format!("{index:#x}")).collect(),
        })
    };
    let plain = plain(text);
    if let Some(digits) = plain.strip_prefix("0x") {
        return match hexadecimal(digits) {
            Some(index) => Ok(MsrIndex::new(index)),
            None if digits.is_empty() => bad("no digit follows `0x`", &[]),
            None if is_hexadecimal(digits) => bad(TOO_LONG, &[]),
            None => bad(
                "not all of its digits are hexadecimal",
                readings(&plain).as_slice(),
            ),
        };
    }
    let is_number = plain.starts_with(|first: char| first.is_ascii_digit());
    if is_number && (is_decimal(&plain) || plain.starts_with("0b") || plain.starts_with("0o")) {
        let why = match &plain[..plain.len().min(2)] {
            "0b" => "an index is hexadecimal, not binary",
            "0o" => "an index is hexadecimal, not octal",
            _ if readings(&plain).is_empty() => TOO_LONG,
            _ => WHY,
        };
        let instead = readings(&plain);
        if !instead.is_empty() || is_decimal(&plain) {
            return bad(why, &instead);
        }
    }
    let error = match named(text) {
        Err(error @ SelectorError::UnknownName { .. }) => error,
        other => return other,
    };
    match readings(&plain)[..] {
        [] => Err(error),
        ref instead => bad(WHY, instead),
    }
}

/// Returns the indices that a text may mean, the likeliest first. The text may be decimal,
/// hexadecimal with `0x`, with `h` or alone, and as AMD's manuals have it (`MSRC001_0015`). Digits
/// alone have two readings: decimal and hexadecimal. The list is empty if the text is not an index.
#[must_use]
pub fn index_readings(text: &str) -> Vec<MsrIndex> {
    let readings = readings(&plain(text.trim()));
    readings.into_iter().map(MsrIndex::new).collect()
}

/// Returns a text in small letters without `_`.
fn plain(text: &str) -> String {
    text.replace('_', "").to_ascii_lowercase()
}

fn readings(plain: &str) -> Vec<u32> {
    if let Some(digits) = plain.strip_prefix("0x") {
        // C has `0xc0010015U` and `0x1b1ul`.
        let digits = digits.trim_end_matches(['u', 'l']);
        return hexadecimal(digits).into_iter().collect();
    }
    for (prefix, radix) in [("0b", 2), ("0o", 8)] {
        let digits = plain.strip_prefix(prefix);
        if let Some(Ok(index)) = digits.map(|digits| u32::from_str_radix(digits, radix)) {
            return vec![index];
        }
    }
    if is_decimal(plain) {
        let decimal = plain.parse().ok();
        let mut both: Vec<u32> = decimal.into_iter().chain(hexadecimal(plain)).collect();
        both.dedup(); // small numbers have the same digits in both bases
        return both;
    }
    let digits = match plain.strip_prefix("msr") {
        Some(digits) if digits.len() == 8 => digits,
        _ => plain.strip_suffix('h').unwrap_or(plain),
    };
    let is_index = digits.contains(|digit: char| digit.is_ascii_digit());
    hexadecimal(digits)
        .filter(|_| is_index)
        .into_iter()
        .collect()
}

fn hexadecimal(digits: &str) -> Option<u32> {
    let index = u32::from_str_radix(digits, 16).ok()?;
    is_hexadecimal(digits).then_some(index)
}

fn is_hexadecimal(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

fn is_decimal(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn index_readings_understands_spellings_of_people_and_manuals() {
        for (text, wanted) in [
            ("0xc001_0115", &[0xc001_0115][..]),
            ("0XC0010015", &[0xc001_0015]),
            ("0xC0010015U", &[0xc001_0015]),
            ("0x1b1ul", &[0x1b1]),
            ("3221291029", &[0xc001_0015]),
            ("c0010015", &[0xc001_0015]),
            ("MSRC001_0015", &[0xc001_0015]),
            ("MSR0000_008B", &[0x8b]),
            ("1C9H", &[0x1c9]),
            ("C000_0080h", &[0xc000_0080]),
            ("174h", &[0x174]),
            ("174", &[0xae, 0x174]),
            ("8", &[8]),
            ("0b11", &[3]),
            ("0o17", &[0xf]),
            ("", &[]),
            ("0x", &[]),
            ("h", &[]),
            ("dead", &[]),
            ("efer", &[]),
            ("0x1_0000_0000", &[]),
            ("99999999999", &[]),
            ("msr8b", &[]),
            ("-1", &[]),
            ("+8", &[]),
        ] {
            let found: Vec<u32> = index_readings(text)
                .into_iter()
                .map(MsrIndex::get)
                .collect();
            assert_eq!(found, wanted, "{text}");
        }
    }
}
