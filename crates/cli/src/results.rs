//! The writers for results and messages. The writers replace characters that a person would not see.

use std::fs::File;
use std::io::{self, Write};

use anstream::AutoStream;
use msrgate_policy::{is_seen, shown};

use crate::descriptors;
use crate::terminal::{self, wrapped};

/// The results, written to standard output. An error of writing is noted once, and later output is dropped,
/// so that the command still comes to its answer; [`Self::finish`] returns the error.
///
/// Text is written line by line. Characters that a person does not [see](is_seen) are replaced, except for
/// line feeds, tabs and msrgate's own styles.
pub(crate) struct Results {
    /// The stream for the results: a duplicate of standard output's descriptor. [`io::Stdout`] would hide
    /// the error if that descriptor is not open for writing.
    stream: io::Result<AutoStream<File>>,
    /// The incomplete last line: text after the last line feed, which is not yet written to standard output.
    line: Vec<u8>,
    /// The largest width of a line in columns: longer lines are broken between words. `None` breaks no line.
    width: Option<usize>,
    trouble: Option<io::Error>,
}

impl Results {
    pub(crate) fn new() -> Self {
        Self {
            stream: descriptors::duplicate(descriptors::STDOUT).map(AutoStream::auto),
            line: Vec::new(),
            width: None,
            trouble: None,
        }
    }

    /// Sets the width in columns at which later lines are broken; `None` breaks no line.
    pub(crate) fn fit(&mut self, width: Option<usize>) {
        self.width = width;
    }

    /// Writes binary bytes to standard output unchanged.
    pub(crate) fn bytes(&mut self, bytes: &[u8]) {
        self.write_lines();
        self.note(bytes, |stream, bytes| stream.as_inner().write_all(bytes));
    }

    /// Writes the last, incomplete line to the stream, and returns the first error of all writing.
    ///
    /// # Errors
    /// The first error that occurred while results were written. A part of the results is then lost.
    pub(crate) fn finish(mut self) -> io::Result<()> {
        self.write_lines();
        self.trouble.map_or(Ok(()), Err)
    }

    fn write_lines(&mut self) {
        let lines = std::mem::take(&mut self.line);
        let text = fitted(styled(&String::from_utf8_lossy(&lines)), self.width);
        self.note(text.as_bytes(), Write::write_all);
    }

    /// Writes bytes to the stream for the results, and keeps the first error. If there are no bytes to
    /// write, a closed stream is not an error.
    fn note(
        &mut self,
        bytes: &[u8],
        write: impl FnOnce(&mut AutoStream<File>, &[u8]) -> io::Result<()>,
    ) {
        if self.trouble.is_some() || bytes.is_empty() {
            return;
        }
        self.trouble = match &mut self.stream {
            Ok(stream) => write(stream, bytes).err(),
            Err(error) => {
                let code = error.raw_os_error().unwrap_or(libc::EBADF);
                Some(io::Error::from_raw_os_error(code))
            }
        };
    }
}

impl Write for Results {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let lines = bytes.iter().rposition(|byte| *byte == b'\n');
        let (lines, rest) = bytes.split_at(lines.map_or(0, |last| last + 1));
        self.line.extend(lines);
        if !lines.is_empty() {
            self.write_lines();
        }
        self.line.extend(rest);
        Ok(bytes.len())
    }

    /// Writes the last, incomplete line to the stream. [`Results::finish`] returns the errors.
    fn flush(&mut self) -> io::Result<()> {
        self.write_lines();
        Ok(())
    }
}

/// Prints a message to standard error. An error of printing is ignored, because the exit code gives the
/// answer.
pub(crate) fn talk(text: &str) {
    let text = fitted(styled(text), terminal::of_talk());
    let _ = anstream::stderr().write_all(text.as_bytes());
}

fn fitted(text: String, width: Option<usize>) -> String {
    match width {
        Some(width) => wrapped(&text, width),
        None => text,
    }
}

/// Returns the text with those characters replaced that a person would not see. Terminal escapes for text
/// styles are kept.
pub(crate) fn styled(text: &str) -> String {
    if is_seen(text) {
        return text.to_owned();
    }
    let mut rest = text;
    let mut safe = String::with_capacity(text.len());
    while let Some(at) = rest.find('\u{1b}') {
        let (before, escape) = rest.split_at(at);
        safe.push_str(&shown(before));
        let style = style(escape);
        // An escape that does not begin a style is replaced like any other hidden character.
        let length = if style.is_empty() { 1 } else { style.len() };
        safe.push_str(if style.is_empty() { "?" } else { style });
        rest = &escape[length..];
    }
    safe + &shown(rest)
}

/// Returns the terminal escape for a text style at the beginning of `escape`, such as `ESC [ 1 m`, or an
/// empty text if there is no such escape.
fn style(escape: &str) -> &str {
    let Some(parameters) = escape.strip_prefix("\u{1b}[") else {
        return "";
    };
    match parameters.find(|c: char| !c.is_ascii_digit() && c != ';') {
        Some(end) if parameters[end..].starts_with('m') => &escape[..=2 + end],
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn styled_text_keeps_styles_of_msrgate_and_has_hidden_characters_replaced() {
        for (text, wanted) in [
            ("a\tb\n", "a\tb\n"),
            (
                "\u{1b}[1m\u{1b}[31mred\u{1b}[0m\n",
                "\u{1b}[1m\u{1b}[31mred\u{1b}[0m\n",
            ),
            ("\u{1b}[2J\u{1b}]0;title\u{7}", "?[2J?]0;title?"),
            ("\u{1b}", "?"),
            ("\u{1b}[", "?["),
            ("\u{1b}[1", "?[1"),
            ("\r\u{9b}2J\u{202e}", "?\u{b7}2J\u{fffd}"),
        ] {
            assert_eq!(styled(text), wanted);
        }
    }
}
