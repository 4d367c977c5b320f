//! The statements of a text in their order: heads of tables and `key = value`, with the comments
//! around each.

use std::ops::Range;

use toml_edit::{Item, Table, Value};

use crate::layout::Comments;

/// A statement.
pub(super) struct Statement<'d> {
    /// The keys from the root on. An element of a list of tables has its number for a key.
    pub(super) path: Vec<String>,
    /// `None`: the head of a table.
    pub(super) value: Option<&'d Value>,
    pub(super) comments: Comments,
    span: Range<usize>,
}

/// A text's statements.
pub(super) struct Statements<'d> {
    /// What stands above them all.
    pub(super) head: Vec<String>,
    pub(super) all: Vec<Statement<'d>>,
    /// What stands below them all, after a blank line.
    pub(super) foot: Vec<String>,
}

impl<'d> Statements<'d> {
    /// Those of `root`, which is what `text` means.
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

    /// Between statements there are blanks, ends of lines, and comments.
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
                // The keys of a statement stand on one line, so that it begins with that line.
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

/// The comment in text that has nothing else but blanks.
pub(super) fn comment(text: &str) -> Option<String> {
    let start = text.find('#')?;
    let comment = text[start..].trim_end_matches(['\n', '\r', ' ', '\t']);
    Some(comment.to_owned())
}

/// The lines of comments, empty for a blank line, of which none follows another.
pub(super) fn lines(text: &str) -> Vec<String> {
    let mut lines: Vec<String> = text
        .lines()
        .map(|line| comment(line).unwrap_or_default())
        .collect();
    lines.dedup_by(|one, before| one.is_empty() && before.is_empty());
    lines
}

/// Takes what stands right below a statement and is parted from the next one by a blank line.
fn tail(lines: &mut Vec<String>, is_end: bool) -> Vec<String> {
    let blank = lines.iter().position(String::is_empty);
    match blank {
        Some(blank) => lines.drain(..blank).collect(),
        None if is_end => std::mem::take(lines),
        None => Vec::new(),
    }
}

/// Takes what is said of the whole text: all above its first statement, or above the last blank line
/// there.
fn head(lines: &mut Vec<String>) -> Vec<String> {
    let blank = lines.iter().rposition(String::is_empty);
    let end = blank.map_or(lines.len(), |blank| blank + 1);
    lines.drain(..end).collect()
}
