//! The statements of a text in their order: heads of tables and `key = value`, with the comments
//! around each.

use std::ops::Range;

use toml_edit::{Item, Table, Value};

use crate::layout::Comments;

/// A statement of a text.
pub(super) struct Statement<'d> {
    /// The keys from the root on. For an element of a list of tables, the key is its number.
    pub(super) path: Vec<String>,
    /// The value. `None`: the statement is the head of a table.
    pub(super) value: Option<&'d Value>,
    pub(super) comments: Comments,
    span: Range<usize>,
}

/// The statements of a text.
pub(super) struct Statements<'d> {
    /// The comments above all statements.
    pub(super) head: Vec<String>,
    pub(super) all: Vec<Statement<'d>>,
    /// The comments below all statements, after a blank line.
    pub(super) foot: Vec<String>,
}

impl<'d> Statements<'d> {
    /// Returns the statements of `root`, which is the parsed `text`.
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

    /// Reads the comments between statements. Nothing else stands there but blanks and ends of
    /// lines.
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
                // The keys of a statement stand on one line, so the statement begins with that
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

/// Returns the lines of comments. A blank line is an empty string; consecutive blank lines become
/// one.
pub(super) fn lines(text: &str) -> Vec<String> {
    let mut lines: Vec<String> = text
        .lines()
        .map(|line| comment(line).unwrap_or_default())
        .collect();
    lines.dedup_by(|one, before| one.is_empty() && before.is_empty());
    lines
}

/// Takes the comments right below a statement that a blank line separates from the next statement.
fn tail(lines: &mut Vec<String>, is_end: bool) -> Vec<String> {
    let blank = lines.iter().position(String::is_empty);
    match blank {
        Some(blank) => lines.drain(..blank).collect(),
        None if is_end => std::mem::take(lines),
        None => Vec::new(),
    }
}

/// Takes the comments about the whole text: all above the first statement, or, if there is a blank
/// line, those above the last blank line.
fn head(lines: &mut Vec<String>) -> Vec<String> {
    let blank = lines.iter().rposition(String::is_empty);
    let end = blank.map_or(lines.len(), |blank| blank + 1);
    lines.drain(..end).collect()
}
