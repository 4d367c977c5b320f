//! Reads dumps of the ioctl's bytes as text, by `hexdump`, `xxd` and `od`.
//!
//! A dump does not say in which notation its numbers are: `0000020` is 16 for `od` and 32 for `hexdump`, and
//! the bytes of a number are in the order of the file or reversed. So a dump is read in every [`Way`] that fits
//! all of its lines, and [`ioctl`](super::ioctl) finds the one that is a filter.

mod line;

use super::{ImportError, lines};
use line::{Line, Numbers, Offsets};

/// The largest number of bytes in a dump, and of numbers in a line. The struct and its bitmaps have far fewer.
const MOST: usize = 0x1_0000;

/// The smallest number of bytes in the first line of a dump.
const LEAST: usize = 8;

/// A way to read a dump: the notation of its offsets, and that of its numbers.
#[derive(Clone, Copy)]
struct Way {
    offsets: Offsets,
    numbers: Numbers,
}

/// The error of a dump that cannot be read in one [`Way`].
struct Misfit {
    line: usize,
    why: &'static str,
}

/// The hint that all messages about lines of a wrong form end with.
const NO_LINE_OF_A_DUMP: &str = "is not an offset and hexadecimal or octal numbers of one size; make the dump with `hexdump -C FILE`";
const CUT_OFF: &str = "has a number with fewer digits than the others: the dump is cut off";
const DOES_NOT_FOLLOW: &str =
    "does not follow the line before: bytes are missing, or are there twice";

impl Misfit {
    /// Returns the error of the way that fits more lines. If both fit as many, a line that is no line of a dump says less.
    fn further(self, other: Option<Self>) -> Self {
        let place = |one: &Self| (one.line, one.why != NO_LINE_OF_A_DUMP);
        match other {
            Some(other) if place(&other) >= place(&self) => other,
            _ => self,
        }
    }
}

impl Way {
    /// Returns all ways to read a dump whose lines begin with offsets, or with none.
    fn all(offsets: &[Offsets]) -> impl Iterator<Item = Self> {
        let with_numbers = |offsets: &Offsets| {
            let offsets = *offsets;
            Numbers::ALL.map(|numbers| Self { offsets, numbers })
        };
        offsets.iter().flat_map(with_numbers)
    }
}

/// Returns true if the first line with content is one of a dump: an offset, if the dump has offsets, and at least eight
/// bytes. A dump in a notation that [`read`] does not know counts, too, if it begins with the offset 0.
pub(super) fn is_dump(bytes: &[u8]) -> bool {
    let mut lines = lines(bytes).map(|(_, line)| line);
    let Some(first) = lines.find(|line| !line.trim().is_empty()) else {
        return false;
    };
    let has_bytes = |way: Way| {
        let Some(Line::Bytes { groups, .. }) = Line::parse(&first, way.offsets, None) else {
            return false;
        };
        let is_even = groups.iter().all(|group| group.len() == groups[0].len());
        let bytes = groups.iter().map(|group| way.numbers.bytes(group));
        let bytes: Option<Vec<_>> = bytes.collect();
        is_even && bytes.is_some_and(|bytes| bytes.concat().len() >= LEAST)
    };
    Way::all(&Offsets::ALL).any(has_bytes) || line::is_of_other_notation(&first)
}

/// Returns the bytes of a dump, as often as there are ways to read all lines with different bytes.
///
/// # Errors
/// Returns [`ImportError::Bytes`] if a line is not one of a dump, or if bytes are missing.
pub(super) fn read(dump: &[u8]) -> Result<Vec<Vec<u8>>, ImportError> {
    let mut furthest: Option<Misfit> = None;
    // The numbers of a dump without offsets could be taken for offsets, but the other way round they could not: the
    // offsets of a dump follow one another.
    for offsets in [&Offsets::RADICES[..], &[Offsets::Absent]] {
        let mut readings: Vec<Vec<u8>> = Vec::new();
        for way in Way::all(offsets) {
            match Reader::read(dump, way) {
                Ok(bytes) if readings.contains(&bytes) => {}
                Ok(bytes) => readings.push(bytes),
                Err(misfit) => furthest = Some(misfit.further(furthest)),
            }
        }
        if !readings.is_empty() {
            return Ok(readings);
        }
    }
    let Misfit { line, why } = furthest.unwrap_or(Misfit {
        line: 1,
        why: NO_LINE_OF_A_DUMP,
    });
    Err(ImportError::Bytes(format!("line {line} of the dump {why}")))
}

/// The bytes of the lines that have been read.
#[derive(Default)]
struct Reader {
    bytes: Vec<u8>,
    /// The bytes of the last line.
    last: Vec<u8>,
    /// The number of the line `*` after the last line, if there is one.
    repeats: Option<usize>,
    /// The number of digits of a group.
    digits: Option<usize>,
    /// The columns of the numbers in the lines of `xxd`.
    columns: Option<usize>,
    /// True after a group with fewer digits.
    is_ended: bool,
}

impl Reader {
    fn read(dump: &[u8], way: Way) -> Result<Vec<u8>, Misfit> {
        let mut reader = Self::default();
        for (number, line) in lines(dump) {
            if !line.trim().is_empty() {
                let read = reader.line(number, &line, way);
                read.map_err(|why| Misfit { line: number, why })?;
            }
        }
        match reader.repeats {
            Some(line) => Err(Misfit {
                line,
                why: "says that lines repeat, and not how many: the dump is cut off",
            }),
            None => Ok(reader.bytes),
        }
    }

    fn line(&mut self, number: usize, line: &str, way: Way) -> Result<(), &'static str> {
        let (offset, groups) = match Line::parse(line, way.offsets, self.columns) {
            Some(Line::Repeat) if way.offsets == Offsets::Absent => {
                return Err(
                    "says that lines repeat, and not how many, because the dump has no offsets; make the dump with `hexdump -C FILE`",
                );
            }
            Some(Line::Repeat) => {
                self.repeats = Some(number);
                return Ok(());
            }
            Some(Line::Bytes {
                offset,
                groups,
                columns,
            }) => {
                self.columns = self.columns.or(columns);
                (offset, groups)
            }
            None => return Err(NO_LINE_OF_A_DUMP),
        };
        let bytes = self.numbers(&groups, way.numbers)?;
        if let Some(offset) = offset {
            self.move_to(offset, &bytes)?;
        }
        self.bytes.extend(&bytes);
        if self.bytes.len() > MOST {
            return Err("has more bytes than a filter has");
        }
        if !bytes.is_empty() {
            self.last = bytes;
        }
        Ok(())
    }

    /// Returns the bytes of a line's groups, which have as many digits as all groups before. Fewer digits has only the
    /// last group of a line of `xxd`, and the last line of `xxd -p`. The other tools fill a number with zeros, so a
    /// number with fewer digits was cut off: if its first byte is the last one, the rest would be taken for other bytes.
    fn numbers(&mut self, groups: &[&str], numbers: Numbers) -> Result<Vec<u8>, &'static str> {
        let is_xxd = self.columns.is_some();
        let mut is_short = self.is_ended && !is_xxd;
        let mut bytes = Vec::new();
        for group in groups {
            let digits = *self.digits.get_or_insert(group.len());
            // The bytes of a number that is a single byte have no order.
            let is_other_way = digits == 2 && numbers == Numbers::HexadecimalReversed;
            if is_short || group.len() > digits || is_other_way {
                return Err(NO_LINE_OF_A_DUMP);
            }
            bytes.extend(numbers.bytes(group).ok_or(NO_LINE_OF_A_DUMP)?);
            is_short = group.len() < digits;
            if is_short && !is_xxd && numbers != Numbers::Hexadecimal {
                return Err(CUT_OFF);
            }
        }
        self.is_ended = is_short;
        Ok(bytes)
    }

    /// Fills the gap that the line `*` stands for, and checks that the bytes of this line follow.
    fn move_to(&mut self, offset: usize, bytes: &[u8]) -> Result<(), &'static str> {
        if offset > MOST {
            return Err("has an offset that no filter has");
        }
        if self.repeats.take().is_some() {
            let missing = offset.saturating_sub(self.bytes.len());
            self.bytes.extend(self.last.iter().cycle().take(missing));
        }
        if bytes.is_empty() && self.fills(offset) {
            self.bytes.truncate(offset);
        }
        if offset == self.bytes.len() {
            Ok(())
        } else if self.bytes.is_empty() {
            Err("does not have the offset 0; dump the file from its first byte on")
        } else {
            Err(DOES_NOT_FOLLOW)
        }
    }

    /// Returns true if the end of the file, at this offset, lies within the last number of the dump: `od` fills a
    /// number that the file has only a part of with zeros.
    fn fills(&self, end: usize) -> bool {
        let size = self.digits.unwrap_or(0) / 2;
        let filled = self.bytes.get(end..).unwrap_or_default();
        filled.len() < size && filled.iter().all(|byte| *byte == 0)
    }
}
