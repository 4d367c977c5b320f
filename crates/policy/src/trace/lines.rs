//! Reads a trace as a stream of lines, in a constant amount of memory.

use std::fmt;
use std::io::{self, BufRead, ErrorKind};

use memchr::memchr;

use super::{Line, parse_line};

/// The maximum length of a line in bytes: 64 KiB. Longer lines are unreadable.
pub const MAX_LINE_BYTES: usize = 64 << 10;

/// The number of a line in its trace, counted from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LineNumber(u64);

impl LineNumber {
    /// The number.
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

/// A reader of a trace's lines. The reader copies a line only if the end of the buffer cuts the
/// line in two.
#[derive(Debug)]
pub struct Lines<R> {
    from: R,
    number: u64,
    bytes: u64,
    /// The beginning of a line whose end is not buffered yet.
    part: Vec<u8>,
}

impl<R: BufRead> Lines<R> {
    /// Returns a reader of the lines of `from`. The buffer of `from` should have at least 64 KiB.
    #[must_use]
    pub const fn new(from: R) -> Self {
        Self {
            from,
            number: 0,
            bytes: 0,
            part: Vec::new(),
        }
    }

    /// Returns the next line with its number, or `None` at the end of the trace.
    ///
    /// # Errors
    /// Returns the error of `from` if the trace cannot be read.
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
                // One byte beyond the maximum is enough to recognize a line that is too long.
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

    /// The number of bytes read so far.
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

/// Parses the last line, which has no line feed. A JSON object is read all the same, because its
/// closing brace shows that the object is whole.
fn without_end(line: &[u8]) -> Line {
    match bounded(line) {
        Line::Nothing => Line::Nothing,
        said if said != Line::Unreadable && line.trim_ascii_start().starts_with(b"{") => said,
        _ => Line::CutOff,
    }
}
