//! The statements of a text in their order: heads of tables and `key = value`, with the comments
//! around each.

use std::ops::Range;

use toml_edit::{Item, Table, Value};

use crate::layout::Comments;

/// A statement of a policy's text: a table head, or a `key = value`.
pub(super) struct Statement<'d> {
    /// The keys that lead from the root of the text to this statement. The key of an element in a
    /// list of tables is the element's number.
    pub(super) path: Vec<String>,
    /// The value of the key. `None`: the statement is the head of a table.
    pub(super) value: Option<&'d Value>,
    pub(super) comments: Comments,
    span: Range<usize>,
}

/// The statements of a policy's text: table heads, and `key = value`.
pub(super) struct Statements<'d> {
    /// The comments above the first table head or key of the text.
    pub(super) head: Vec<String>,
    pub(super) all: Vec<Statement<'d>>,
    /// The comments below the last table head or value of the text, after a blank line.
    pub(super) foot: Vec<String>,
}

impl<'d> Statements<'d> {
    /// Returns the table heads and the `key = value`s of `root`, which is the parsed `text`.
    pub(super) fn of(root: &'d Table, text: &str) -> Self {
        let mut all = Vec::new();
        collect(root, &[], text, &mut all);
        all.sort_by_key(|one| one.span.start);
        let mut statements = Self {
            head: Vec::new(),
            all,
            foot: Vec::new(),
        };
        statements.read_comments(text);
        statements
    }

    /// Reads the comments between the statements. Between two statements, a text has only comments,
    /// blanks and ends of lines.
    fn read_comments(&mut self, text: &str) {
        let mut end = None;
        for number in 0..=self.all.len() {
            let start = self
                .all
                .get(number)
                .map_or(text.len(), |one| one.span.start);
            let between = &text[end.unwrap_or(0)..start];
            let (same, below) = match end {
                None => ("", between),
                Some(_) => between.split_once('\n').unwrap_or((between, "")),
            };
            let (trail, mut lines) = (comment(same), lines(below));
            if let Some(before) = number
                .checked_sub(1)
                .and_then(|before| self.all.get_mut(before))
            {
                before.comments.trail = trail;
                before.comments.tail = tail(&mut lines, start == text.len());
            } else {
                self.head = head(&mut lines);
            }
            match self.all.get_mut(number) {
                Some(next) => {
                    next.comments.lead = lines;
                    end = Some(next.span.end);
                }
                None => self.foot = lines,
            }
        }
    }
}

fn collect<'d>(table: &'d Table, path: &[String], text: &str, all: &mut Vec<Statement<'d>>) {
    let head = |path: &[String], table: &Table| {
        let is_written = !table.is_implicit() && !table.is_dotted();
        let span = table.span().filter(|_| is_written)?;
        Some(Statement {
            path: path.to_vec(),
            value: None,
            comments: Comments::default(),
            span: line_start(text, span.start)..span.end,
        })
    };
    for (key, item) in table {
        let mut path = path.to_vec();
        path.push(key.to_owned());
        match item {
            Item::None => {}
            Item::Value(value) => {
                // The keys of a `key = value` stand on one line, so the statement begins with that
                // line.
                let key = table.key(key).and_then(toml_edit::Key::span);
                let span = key.zip(value.span());
                all.extend(span.map(|(key, span)| Statement {
                    path,
                    value: Some(value),
                    comments: Comments::default(),
                    span: line_start(text, key.start)..span.end,
                }));
            }
            Item::Table(table) => {
                all.extend(head(&path, table));
                collect(table, &path, text, all);
            }
            Item::ArrayOfTables(tables) => {
                for (number, table) in tables.iter().enumerate() {
                    let path = [path.as_slice(), &[number.to_string()]].concat();
                    all.extend(head(&path, table));
                    collect(table, &path, text, all);
                }
            }
        }
    }
}

fn line_start(text: &str, at: usize) -> usize {
    text[..at].rfind('\n').map_or(0, |end| end + 1)
}

/// Returns the comment of a text that consists of a comment and blanks.
pub(super) fn comment(text: &str) -> Option<String> {
    let start = text.find('#')?;
    let comment = text[start..].trim_end_matches(['\n', '\r', ' ', '\t']);
    Some(comment.to_owned())
}

/// Returns the comments in a text that consists of comments and blank lines, one string a line. A
/// blank line is an empty string; consecutive blank lines become one.
pub(super) fn lines(text: &str) -> Vec<String> {
    let mut lines: Vec<String> = text
        .lines()
        .map(|line| comment(line).unwrap_or_default())
        .collect();
    lines.dedup_by(|one, before| one.is_empty() && before.is_empty());
    lines
}

/// Removes from `lines`, and returns, the comments that belong to the statement above them: those
/// right below the statement, if a blank line separates them from the next statement.
fn tail(lines: &mut Vec<String>, is_end: bool) -> Vec<String> {
    let blank = lines.iter().position(String::is_empty);
    match blank {
        Some(blank) => lines.drain(..blank).collect(),
        None if is_end => std::mem::take(lines),
        None => Vec::new(),
    }
}

/// Removes from `lines`, and returns, the comments about the whole text: all comments above the
/// first statement. If a blank line is among them, only the comments above the last blank line are
/// removed.
fn head(lines: &mut Vec<String>) -> Vec<String> {
    let blank = lines.iter().rposition(String::is_empty);
    let end = blank.map_or(lines.len(), |blank| blank + 1);
    lines.drain(..end).collect()
}
