//! A trace as a stream of lines, in memory that does not grow with it.

use std::fmt;
use std::io::{self, BufRead, ErrorKind};

use memchr::memchr;

use super::{Line, parse_line};

/// The most bytes a line may have: 64 KiB. Longer ones are unreadable.
pub const MAX_LINE_BYTES: usize = 64 << 10;

/// A line's place in its trace, counted from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LineNumber(u64);

impl LineNumber {
    /// The number itself.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0
    }
}

impl fmt::Display for LineNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// Reads a trace line by line. No line is copied, but for those that its buffer cuts in two.
#[derive(Debug)]
pub struct Lines<R> {
    from: R,
    number: u64,
    bytes: u64,
    /// The beginning of a line whose end is not buffered yet.
    part: Vec<u8>,
}

impl<R: BufRead> Lines<R> {
    /// The lines of `from`; a buffer of 64 KiB or more serves best.
    #[must_use]
    pub const fn new(from: R) -> Self {
        Self {
            from,
            number: 0,
            bytes: 0,
            part: Vec::new(),
        }
    }

    /// The next line with its number, or `None` at the end.
    ///
    /// # Errors
    /// The trace cannot be read.
    pub fn next_line(&mut self) -> io::Result<Option<(LineNumber, Line)>> {
        self.part.clear();
        loop {
            let buffered = match self.from.fill_buf() {
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                other => other?,
            };
            if buffered.is_empty() && self.part.is_empty() {
                return Ok(None);
            }
            let end = memchr(b'\n', buffered);
            let text = &buffered[..end.unwrap_or(buffered.len())];
            let is_whole = end.is_some() || buffered.is_empty();
            let taken = text.len() + usize::from(end.is_some());
            let line = if is_whole && self.part.is_empty() {
                Some(bounded(text))
            } else {
                // One byte more than a line may have shows that it has.
                let room = (MAX_LINE_BYTES + 1).saturating_sub(self.part.len());
                self.part.extend_from_slice(&text[..text.len().min(room)]);
                match end {
                    None if is_whole => Some(without_end(&self.part)),
                    _ => is_whole.then(|| bounded(&self.part)),
                }
            };
            self.from.consume(taken);
            self.bytes += taken as u64;
            if let Some(line) = line {
                self.number += 1;
                return Ok(Some((LineNumber(self.number), line)));
            }
        }
    }

    /// How many bytes were read so far.
    #[must_use]
    pub const fn bytes(&self) -> u64 {
        self.bytes
    }
}

fn bounded(line: &[u8]) -> Line {
    if line.len() > MAX_LINE_BYTES {
        Line::Unreadable
    } else {
        parse_line(line)
    }
}

/// What the last line says, if no line feed ends it. An object in JSON has an end of its own.
fn without_end(line: &[u8]) -> Line {
    match bounded(line) {
        Line::Nothing => Line::Nothing,
        said if said != Line::Unreadable && line.trim_ascii_start().starts_with(b"{") => said,
        _ => Line::CutOff,
    }
}
