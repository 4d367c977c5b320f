//! The width of the terminal, and the wrapping of lines.

use std::io;

use terminal_size::{Width, terminal_size_of};

/// The smallest width in columns at which lines are broken. On a terminal that is narrower than this, lines
/// are broken at this width.
const LEAST: usize = 20;

/// The number of columns by which the continuation of a broken line is indented, if it does not stand below
/// the last column of a table.
const INDENT: usize = 4;

/// Returns the width of the terminal to which standard output goes, or `None` if it does not go to a
/// terminal.
pub(crate) fn of_results() -> Option<usize> {
    terminal_size_of(io::stdout()).map(columns)
}

/// Returns the width of the terminal to which standard error goes, or `None` if it does not go to a
/// terminal.
pub(crate) fn of_talk() -> Option<usize> {
    terminal_size_of(io::stderr()).map(columns)
}

fn columns((Width(width), _): (Width, terminal_size::Height)) -> usize {
    usize::from(width).max(LEAST)
}

/// Breaks lines that are longer than `width` between words. The continuation of a table's row stands below
/// the row's last column, if half of the width remains there.
pub(crate) fn wrapped(text: &str, width: usize) -> String {
    let mut all = String::with_capacity(text.len());
    for line in text.split_inclusive('\n') {
        let (line, end) = match line.strip_suffix('\n') {
            Some(line) => (line, "\n"),
            None => (line, ""),
        };
        wrap(&mut all, line, width);
        all.push_str(end);
    }
    all
}

fn wrap(all: &mut String, line: &str, width: usize) {
    if seen(line) <= width {
        all.push_str(line);
        return;
    }
    let lead = line.len() - line.trim_start_matches(' ').len();
    let lead = if lead > width / 2 { INDENT } else { lead };
    let column = last_column(line).filter(|column| *column <= width / 2);
    let indent = column.unwrap_or(lead + INDENT);
    // Without a column to align with, a wide gap between words becomes two blanks.
    let gap = if column.is_some() { width } else { 2 };
    let mut column = lead;
    all.extend(std::iter::repeat_n(' ', lead));
    let mut rest = line.trim_start_matches(' ');
    let mut is_first = true;
    while !rest.is_empty() {
        let word = rest.split(' ').next().unwrap_or_default();
        let after = rest[word.len()..].trim_start_matches(' ');
        let blanks = (rest.len() - word.len() - after.len()).min(gap);
        if !is_first && column + seen(word) > width {
            all.truncate(all.trim_end_matches(' ').len());
            all.push('\n');
            all.extend(std::iter::repeat_n(' ', indent));
            column = indent;
        }
        all.push_str(word);
        column += seen(word);
        if !after.is_empty() {
            all.extend(std::iter::repeat_n(' ', blanks));
            column += blanks;
        }
        (rest, is_first) = (after, false);
    }
}

/// Returns the column at which the last cell of a table's row begins: the column after the last gap of two
/// or more blanks. Returns `None` if the line has no such gap.
fn last_column(line: &str) -> Option<usize> {
    let body = line.trim_start_matches(' ');
    let at = line.len() - body.len() + body.rfind("  ")? + 2;
    Some(seen(&line[..at]))
}

/// Returns the width of a text on the terminal, in columns: the number of the text's characters outside of
/// style escapes.
fn seen(text: &str) -> usize {
    let mut count = 0;
    let mut rest = text.chars();
    while let Some(c) = rest.next() {
        if c == '\u{1b}' {
            rest.by_ref().find(|end| *end == 'm');
        } else {
            count += 1;
        }
    }
    count
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn line_wrapping_does_not_change_line_that_fits_the_width() {
        let text = "a  b\n\n  c d\n";
        assert_eq!(wrapped(text, 20), text);
        let styled = "\u{1b}[1mtwenty characters   \u{1b}[0m";
        assert_eq!(wrapped(styled, 20), styled);
    }

    #[test]
    fn wrapped_table_row_continues_below_its_last_column() {
        assert_eq!(
            wrapped(
                "S1.1    holds      capability 188 says that user space can handle\n",
                40
            ),
            "S1.1    holds      capability 188 says\n                   that user space can\n                   handle\n"
        );
    }

    #[test]
    fn wrapped_table_row_with_wide_columns_continues_with_small_indent() {
        assert_eq!(
            wrapped(
                "0x10 IA32_TIME_STAMP_COUNTER                 read   deny     #GP, or an exit",
                40
            ),
            "0x10 IA32_TIME_STAMP_COUNTER  read  deny\n    #GP, or an exit"
        );
        assert_eq!(
            wrapped(
                "                                             write  deny     #GP, or an exit",
                40
            ),
            "    write  deny  #GP, or an exit"
        );
    }

    #[test]
    fn wrapped_sentence_continues_on_an_indented_line() {
        assert_eq!(
            wrapped("  - accesses that never leave the guest", 30),
            "  - accesses that never leave\n      the guest"
        );
    }

    #[test]
    fn line_wrapping_puts_word_longer_than_the_width_on_its_own_line() {
        assert_eq!(
            wrapped("a bbbbbbbbbbbbbbbbbbbbbbbbb c", 20),
            "a\n    bbbbbbbbbbbbbbbbbbbbbbbbb\n    c"
        );
    }
}
