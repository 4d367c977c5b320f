//! The writers for results and for talk, and the last filter of what they show.

use std::fs::File;
use std::io::{self, Write};

use anstream::AutoStream;
use msrgate_policy::{is_seen, shown};

use crate::descriptors;
use crate::terminal::{self, wrapped};

/// Standard output. What cannot be written is noted once and goes nowhere from then on, so that each
/// command comes to its answer whoever listens; [`Self::finish`] says what became of it.
///
/// Text leaves it line by line, as people may see it: characters that a person does not [see](is_seen) are
/// replaced, but for line feeds, tabs and the styles of msrgate's own.
pub(crate) struct Results {
    /// Not [`io::Stdout`], which takes a descriptor that nobody can write to for a written one.
    stream: io::Result<AutoStream<File>>,
    /// The text after the last line feed.
    line: Vec<u8>,
    /// Longer lines are broken between words.
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

    /// Breaks lines that do not fit into a terminal of this width from now on.
    pub(crate) fn fit(&mut self, width: Option<usize>) {
        self.width = width;
    }

    /// Writes what is no text, as it is.
    pub(crate) fn bytes(&mut self, bytes: &[u8]) {
        self.write_lines();
        self.note(bytes, |stream, bytes| stream.as_inner().write_all(bytes));
    }

    /// Writes what is left.
    ///
    /// # Errors
    /// The first that was met: something of the results is not where they should be.
    pub(crate) fn finish(mut self) -> io::Result<()> {
        self.write_lines();
        self.trouble.map_or(Ok(()), Err)
    }

    fn write_lines(&mut self) {
        let lines = std::mem::take(&mut self.line);
        let text = fitted(styled(&String::from_utf8_lossy(&lines)), self.width);
        self.note(text.as_bytes(), Write::write_all);
    }

    /// Writes bytes, if there are any: who writes nothing needs no stream.
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

    /// The command says at its end that something could not be written.
    fn flush(&mut self) -> io::Result<()> {
        self.write_lines();
        Ok(())
    }
}

/// Talk, to standard error. Where that cannot be written, the exit code still tells.
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

/// The text as it may be shown, with the styles in it.
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
        // An escape that is no style is a character like others.
        let length = if style.is_empty() { 1 } else { style.len() };
        safe.push_str(if style.is_empty() { "?" } else { style });
        rest = &escape[length..];
    }
    safe + &shown(rest)
}

/// The style that an escape begins: `ESC [ 1 m`.
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
    fn text_keeps_styles_and_loses_what_a_terminal_obeys() {
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
