//! Reads a trace as a stream of lines, in a constant amount of memory.

use std::borrow::Cow;
use std::fmt;
use std::io::{self, BufRead, ErrorKind};

use memchr::memchr;

use super::{Line, Task, mail, task};
use crate::import::{is_utf_16, without_mark};

/// The maximum length of a line in bytes: 64 KiB. Longer lines are unreadable.
pub const MAX_LINE_BYTES: usize = 64 << 10;

/// The maximum length in bytes of a line that may be a part of a wrapped event.
const MAX_WRAPPED: usize = 1 << 10;

/// The message for a trace that Windows, or a program on Windows, has written in UTF-16.
const UTF_16: &str =
    "the trace is text in UTF-16; convert it to UTF-8, for example by `iconv -f UTF-16 -t UTF-8`";

/// The number of a line in its trace, counted from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LineNumber(u64);

impl LineNumber {
    /// The number of the line, counted from 1.
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
/// line in two, if the line is an access, or if the next line may continue it.
#[derive(Debug)]
pub struct Lines<R> {
    from: R,
    number: u64,
    bytes: u64,
    /// The beginning of a line whose end is not buffered yet.
    part: Vec<u8>,
    /// The text of the last line, if it is an access.
    access: Vec<u8>,
    /// A line that was read to see if it continues the line before it, and its text.
    ahead: Option<(LineNumber, Parsed)>,
}

/// A line, and its text if it is needed further: an access, or a line that may be wrapped.
#[derive(Debug)]
struct Parsed {
    line: Line,
    text: Vec<u8>,
}

/// The way in which a line ends.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    LineFeed,
    /// The line ends with the trace, without a line feed.
    Nothing,
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
            access: Vec::new(),
            ahead: None,
        }
    }

    /// Returns the next line with its number, or `None` at the end of the trace. An event that was
    /// wrapped into two lines has the number of the first; the second has no content.
    ///
    /// # Errors
    /// Returns the error of `from` if the trace cannot be read, and an error of the kind
    /// [`ErrorKind::InvalidData`] if the trace is text in UTF-16.
    pub fn next_line(&mut self) -> io::Result<Option<(LineNumber, Line)>> {
        let next = match self.ahead.take() {
            Some(ahead) => Some(ahead),
            None => self.read()?,
        };
        let Some((number, mut parsed)) = next else {
            return Ok(None);
        };
        if parsed.line == Line::Unreadable && !parsed.text.is_empty() {
            let second = self.read()?;
            self.ahead = second.map(|(number, second)| {
                if second.line != Line::CutOff
                    && second.continues(&parsed)
                    && let Some((line, text)) = mail::joined(&parsed.text, &second.text)
                {
                    parsed = Parsed { line, text };
                    let line = Line::Nothing;
                    return (
                        number,
                        Parsed {
                            line,
                            text: Vec::new(),
                        },
                    );
                }
                (number, second)
            });
        }
        self.access = parsed.text;
        Ok(Some((number, parsed.line)))
    }

    /// Returns the task of the access that [`next_line`](Self::next_line) has returned last, if the
    /// line names a task.
    #[must_use]
    pub fn task(&self) -> Option<Task<'_>> {
        task::of_line(&self.access)
    }

    /// Reads one line.
    fn read(&mut self) -> io::Result<Option<(LineNumber, Parsed)>> {
        self.part.clear();
        let mut text = std::mem::take(&mut self.access);
        text.clear();
        loop {
            let buffered = match self.from.fill_buf() {
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                other => other?,
            };
            if buffered.is_empty() && self.part.is_empty() {
                return Ok(None);
            }
            if self.bytes == 0 && is_utf_16(buffered) {
                return Err(io::Error::new(ErrorKind::InvalidData, UTF_16));
            }
            let end = memchr(b'\n', buffered);
            let found = &buffered[..end.unwrap_or(buffered.len())];
            let is_whole = end.is_some() || buffered.is_empty();
            let taken = found.len() + usize::from(end.is_some());
            let found = if self.bytes == 0 {
                without_mark(found)
            } else {
                found
            };
            let line = if is_whole && self.part.is_empty() {
                Some(kept(found, End::LineFeed, &mut text))
            } else {
                // One byte beyond the maximum is enough to recognize a line that is too long.
                let room = (MAX_LINE_BYTES + 1).saturating_sub(self.part.len());
                self.part.extend_from_slice(&found[..found.len().min(room)]);
                let end = if end.is_some() {
                    End::LineFeed
                } else {
                    End::Nothing
                };
                is_whole.then(|| kept(&self.part, end, &mut text))
            };
            self.from.consume(taken);
            self.bytes += taken as u64;
            if let Some(line) = line {
                self.number += 1;
                return Ok(Some((LineNumber(self.number), Parsed { line, text })));
            }
        }
    }

    /// The number of bytes read so far.
    #[must_use]
    pub const fn bytes(&self) -> u64 {
        self.bytes
    }
}

impl Parsed {
    /// Returns true if this line may be the second part of a wrapped event: it cannot be read
    /// alone, or it is an access without a task, and the line before it names a task and no event.
    fn continues(&self, first: &Self) -> bool {
        let starts =
            |text: &[u8]| text.first().is_some_and(u8::is_ascii_digit) || text.starts_with(b"kvm");
        match self.line {
            Line::Access(_) => {
                let is_head =
                    memchr(b'[', &first.text).is_some() && memchr(b':', &first.text).is_none();
                let text = mail::unquoted(self.text.trim_ascii());
                is_head && starts(text) && task::of_line(&self.text).is_none()
            }
            Line::Unreadable => true,
            _ => false,
        }
    }
}

/// Parses a line, and copies its text to `text` if the line is an access or may be wrapped.
fn kept(line: &[u8], end: End, text: &mut Vec<u8>) -> Line {
    let (parsed, plain) = match end {
        End::LineFeed => bounded(line),
        End::Nothing => (without_end(line), Cow::Borrowed(line)),
    };
    let is_kept = match parsed {
        Line::Access(_) | Line::Deflected(_) => true,
        Line::Unreadable => line.len() <= MAX_WRAPPED && !line.trim_ascii_start().starts_with(b"{"),
        _ => false,
    };
    if is_kept {
        text.extend_from_slice(&plain);
    }
    parsed
}

fn bounded(line: &[u8]) -> (Line, Cow<'_, [u8]>) {
    if line.len() > MAX_LINE_BYTES {
        (Line::Unreadable, Cow::Borrowed(line))
    } else {
        mail::parse(line)
    }
}

/// Parses the last line, which has no line feed. A JSON object is read all the same, because its
/// closing brace shows that the object is whole.
fn without_end(line: &[u8]) -> Line {
    match bounded(line).0 {
        Line::Nothing => Line::Nothing,
        said if said != Line::Unreadable && line.trim_ascii_start().starts_with(b"{") => said,
        _ => Line::CutOff,
    }
}
