//! The layout of a policy's text: keys, strings, settings in a column, entries as lines or as
//! tables. The content comes from a [`Policy`](crate::Policy) or from a text.

mod string;

use crate::limits::MAX_LINE;
use crate::parse::words::BOTH;
pub(crate) use string::string;

/// The width of a line in columns. A longer line is spread over several, if possible.
const WIDTH: usize = 120;

/// The maximum width to which the keys of a paragraph are padded, so that the values align. A wider
/// key is not padded, so that its value stands further to the right.
const WIDEST_KEY: usize = 28;

/// The maximum width of a line that counts when the comments of a paragraph are aligned. A longer
/// line does not move the column of comments to the right.
const WIDEST_LINE: usize = 80;

/// A value as TOML writes it.
#[derive(Clone, Debug)]
pub(crate) enum Value {
    /// A string, without its quotes.
    Text(String),
    /// Text that is written unchanged: a number, true or false.
    Bare(String),
    List(List),
    /// A table that stands on one line.
    Table(Vec<(String, Value)>),
}

/// A list, with the comments in it.
#[derive(Clone, Debug, Default)]
pub(crate) struct List {
    pub(crate) elements: Vec<Element>,
    /// The comments after the last element of the list.
    pub(crate) tail: Vec<String>,
}

#[derive(Clone, Debug)]
pub(crate) struct Element {
    pub(crate) lead: Vec<String>,
    pub(crate) value: Value,
    pub(crate) trail: Option<String>,
}

/// The comments of an item. Comments above and below are lines; an empty string is a blank line.
#[derive(Clone, Debug, Default)]
pub(crate) struct Comments {
    /// The comments above the item. They begin with a blank line if the item begins a paragraph.
    pub(crate) lead: Vec<String>,
    /// The comment on the item's line.
    pub(crate) trail: Option<String>,
    /// The comments below the item, up to the next blank line.
    pub(crate) tail: Vec<String>,
}

impl Comments {
    pub(crate) fn begins_paragraph(&self) -> bool {
        self.lead.first().is_some_and(String::is_empty)
    }

    pub(crate) fn begin_paragraph(&mut self) {
        if !self.begins_paragraph() {
            self.lead.insert(0, String::new());
        }
    }

    pub(crate) fn has_heading(&self) -> bool {
        self.lead.iter().any(|line| !line.is_empty())
    }

    pub(crate) fn is_empty(&self) -> bool {
        !self.has_heading() && self.trail.is_none() && self.tail.is_empty()
    }
}

/// A line `key = value`, with its comments.
#[derive(Clone, Debug)]
pub(crate) struct Field {
    pub(crate) comments: Comments,
    pub(crate) key: String,
    pub(crate) value: Value,
}

/// An entry of `[msrs]` or of `[when.msrs]`, with its comments.
#[derive(Clone, Debug)]
pub(crate) struct EntryText {
    pub(crate) comments: Comments,
    pub(crate) key: String,
    pub(crate) body: Body,
}

#[derive(Clone, Debug)]
pub(crate) enum Body {
    /// The entry on one line, if it fits.
    Line(Value),
    /// The entry as a table of its own.
    Table(Vec<Field>),
}

impl Value {
    pub(crate) fn text(text: impl Into<String>) -> Self {
        Self::Text(text.into())
    }

    pub(crate) fn list(values: impl IntoIterator<Item = Value>) -> Self {
        let element = |value| Element {
            lead: Vec::new(),
            value,
            trail: None,
        };
        Self::List(List {
            elements: values.into_iter().map(element).collect(),
            tail: Vec::new(),
        })
    }

    /// Returns the value on one line, unless it contains a comment.
    pub(crate) fn line(&self) -> Option<String> {
        match self {
            Self::Text(text) => Some(string(text)),
            Self::Bare(text) => Some(text.clone()),
            Self::List(list) => {
                let has_comment = |one: &Element| !one.lead.is_empty() || one.trail.is_some();
                if !list.tail.is_empty() || list.elements.iter().any(has_comment) {
                    return None;
                }
                let elements = list.elements.iter().map(|one| one.value.line());
                let elements: Option<Vec<_>> = elements.collect();
                Some(format!("[{}]", elements?.join(", ")))
            }
            Self::Table(fields) => table(fields, Self::line),
        }
    }

    /// Returns the value on one line if it fits after a key of this width.
    fn short(&self, key: usize) -> Option<String> {
        let has_lines = |value: &Self| matches!(value, Self::Text(text) if text.contains('\n'));
        let is_flat = match self {
            Self::Table(fields) => !fields.iter().any(|(_, value)| has_lines(value)),
            value => !has_lines(value),
        };
        let line = self.line().filter(|_| is_flat)?;
        (key + " = ".len() + line.chars().count() <= WIDTH).then_some(line)
    }

    /// Returns the value on as many lines as necessary.
    fn spread(&self) -> String {
        match self {
            Self::Text(text) => string::block(text),
            Self::Bare(text) => text.clone(),
            Self::List(list) => {
                let mut text = "[\n".to_owned();
                for one in &list.elements {
                    text.extend(one.lead.iter().map(|line| format!("    {line}\n")));
                    let value = one.value.short(4).unwrap_or_else(|| one.value.spread());
                    let line = format!("    {value},");
                    push_with_comment(&mut text, &line, 1, one.trail.as_deref());
                }
                text.extend(list.tail.iter().map(|line| format!("    {line}\n")));
                text + "]"
            }
            Self::Table(fields) => {
                let value = |value: &Self| Some(value.short(0).unwrap_or_else(|| value.spread()));
                table(fields, value).unwrap_or_default()
            }
        }
    }
}

fn table(fields: &[(String, Value)], value: impl Fn(&Value) -> Option<String>) -> Option<String> {
    if fields.is_empty() {
        return Some("{}".to_owned());
    }
    let fields = fields
        .iter()
        .map(|(name, one)| Some(format!("{} = {}", key(name), value(one)?)));
    let fields: Option<Vec<_>> = fields.collect();
    Some(format!("{{ {} }}", fields?.join(", ")))
}

/// Returns a key, in quotes if TOML requires them.
pub(crate) fn key(key: &str) -> String {
    let is_bare = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-';
    if !key.is_empty() && key.bytes().all(is_bare) {
        key.to_owned()
    } else {
        string(key)
    }
}

/// Adds a blank line, unless the text is empty or ends with one.
pub(crate) fn gap(text: &mut String) {
    if !text.is_empty() && !text.ends_with("\n\n") {
        text.push('\n');
    }
}

/// Writes the lines of comments, without the blank line that begins a paragraph.
pub(crate) fn comment_lines(text: &mut String, lines: &[String]) {
    let lines = match lines {
        [first, rest @ ..] if first.is_empty() => rest,
        lines => lines,
    };
    text.extend(lines.iter().map(|line| format!("{line}\n")));
}

/// Writes the head of a table, such as `[msrs]`.
pub(crate) fn header(text: &mut String, head: &str, comments: &Comments) {
    comment_lines(text, &comments.lead);
    push_with_comment(text, head, 2, comments.trail.as_deref());
    if !comments.tail.is_empty() {
        comment_lines(text, &comments.tail);
        text.push('\n');
    }
}

/// Writes a line and the comment beside it. If the two together would exceed the maximum length of
/// a line, the comment stands above.
fn push_with_comment(text: &mut String, line: &str, blanks: usize, comment: Option<&str>) {
    let comment = comment.unwrap_or_default();
    let last = line.rsplit('\n').next().map_or(0, str::len);
    if last + blanks + comment.len() > MAX_LINE {
        text.push_str(&format!("{comment}\n{line}\n"));
    } else if comment.is_empty() {
        text.push_str(&format!("{line}\n"));
    } else {
        text.push_str(&format!("{line}{}{comment}\n", " ".repeat(blanks)));
    }
}

/// Writes settings, or the fields of a table: in paragraphs, with the values of a paragraph in a
/// column.
pub(crate) fn fields(text: &mut String, fields: &[Field]) {
    let mut rest = fields;
    while let Some((first, others)) = rest.split_first() {
        let mut length = 1;
        let mut before = first;
        for next in others {
            if next.comments.begins_paragraph() || !before.comments.tail.is_empty() {
                break;
            }
            length += 1;
            before = next;
        }
        let (this, after) = rest.split_at(length);
        paragraph(text, this);
        if !after.is_empty() {
            gap(text);
        }
        rest = after;
    }
}

/// Writes the `cpu` of a `[[when]]`: a line, or a table if the line would be long.
pub(crate) fn cpu(text: &mut String, cpu: Field) {
    match cpu.value {
        Value::Table(parts) if Value::Table(parts.clone()).short(cpu.key.len()).is_none() => {
            header(text, "[when.cpu]", &cpu.comments);
            let parts: Vec<_> = parts.into_iter().map(plain_field).collect();
            fields(text, &parts);
        }
        _ => fields(text, &[cpu]),
    }
}

fn plain_field((key, value): (String, Value)) -> Field {
    Field {
        comments: Comments::default(),
        key,
        value,
    }
}

fn paragraph(text: &mut String, fields: &[Field]) {
    let lines: Vec<_> = fields.iter().map(Line::of).collect();
    let width = column_of_values(&lines);
    let lines: Vec<_> = lines
        .iter()
        .map(|Line { key, value }| format!("{key:<width$} = {value}"))
        .collect();
    let column = lines
        .iter()
        .zip(fields)
        .filter(|(_, field)| field.comments.trail.is_some())
        .map(|(line, _)| last_line_width(line))
        .filter(|&width| width <= WIDEST_LINE)
        .max()
        .unwrap_or_default();
    for (line, field) in lines.iter().zip(fields) {
        comment_lines(text, &field.comments.lead);
        let blanks = column.saturating_sub(last_line_width(line)) + 2;
        push_with_comment(text, line, blanks, field.comments.trail.as_deref());
        comment_lines(text, &field.comments.tail);
    }
}

/// The key and the value of a line `key = value`.
struct Line {
    key: String,
    value: String,
}

impl Line {
    fn of(field: &Field) -> Self {
        let key = key(&field.key);
        let value = field.value.short(key.chars().count());
        let value = value.unwrap_or_else(|| field.value.spread());
        Self { key, value }
    }

    fn key_width(&self) -> usize {
        self.key.chars().count()
    }
}

/// Returns the width to which keys are padded. Wider keys, for which a line would be too long, are
/// not padded.
fn column_of_values(lines: &[Line]) -> usize {
    let mut widths: Vec<_> = lines.iter().map(Line::key_width).collect();
    widths.retain(|&width| width <= WIDEST_KEY);
    widths.sort_unstable();
    widths.dedup();
    let mut longest = 0;
    let mut column = 0;
    for width in widths {
        let values = lines.iter().filter(|line| line.key_width() == width);
        let values = values.filter_map(|line| line.value.lines().next());
        longest = values
            .map(|value| value.chars().count())
            .fold(longest, usize::max);
        if width + " = ".len() + longest <= WIDTH {
            column = width;
        }
    }
    column
}

fn last_line_width(text: &str) -> usize {
    let last = text.rsplit('\n').next();
    last.map_or(0, |line| line.chars().count())
}

/// Writes the entries of `[msrs]` or `[when.msrs]`: first those on lines, then those that are
/// tables. If one of the entries below a comment is a table, all of them become tables, so that
/// they stay below the comment.
pub(crate) fn entries(text: &mut String, path: &str, head: &Comments, entries: Vec<EntryText>) {
    let mut lines: Vec<Field> = Vec::new();
    let mut tables = Vec::new();
    let is_empty = entries.is_empty();
    let mut begins_paragraph = false;
    for run in runs(entries) {
        begins_paragraph |= run
            .first()
            .is_some_and(|one| one.comments.begins_paragraph());
        let is_headed = run.first().is_some_and(|one| one.comments.has_heading());
        let has_table = run.iter().any(EntryText::is_table);
        for mut entry in run {
            if is_headed && has_table || entry.is_table() {
                tables.push(entry.into_table());
            } else if let Body::Line(value) = entry.body {
                // The paragraph's first entry may have become a table, which stands elsewhere.
                if std::mem::take(&mut begins_paragraph) {
                    entry.comments.begin_paragraph();
                }
                lines.push(Field {
                    comments: entry.comments,
                    key: entry.key,
                    value,
                });
            }
        }
    }
    if is_empty || !lines.is_empty() || !head.is_empty() {
        header(text, &format!("[{path}]"), head);
        fields(text, &lines);
    }
    for (key, comments, body) in tables {
        gap(text);
        let (head, tail) = (
            Comments {
                tail: Vec::new(),
                ..comments.clone()
            },
            comments.tail,
        );
        header(text, &format!("[{path}.{key}]"), &head);
        fields(text, &body);
        comment_lines(text, &tail);
    }
}

/// Returns the entries in groups: a blank line or a comment begins a new group.
fn runs(entries: Vec<EntryText>) -> Vec<Vec<EntryText>> {
    let mut runs: Vec<Vec<EntryText>> = Vec::new();
    for entry in entries {
        let comments = &entry.comments;
        let is_own = matches!(entry.body, Body::Table(_));
        match runs.last_mut() {
            Some(run)
                if !is_own
                    && !comments.begins_paragraph()
                    && !comments.has_heading()
                    && run.last().is_some_and(EntryText::may_go_on) =>
            {
                run.push(entry);
            }
            _ => runs.push(vec![entry]),
        }
    }
    runs
}

impl EntryText {
    fn may_go_on(&self) -> bool {
        matches!(self.body, Body::Line(_)) && self.comments.tail.is_empty()
    }

    fn is_table(&self) -> bool {
        match &self.body {
            Body::Table(_) => true,
            Body::Line(value) => value.short(key(&self.key).chars().count()).is_none(),
        }
    }

    fn into_table(self) -> (String, Comments, Vec<Field>) {
        let fields = match self.body {
            Body::Table(fields) => fields,
            Body::Line(Value::Table(fields)) => fields.into_iter().map(plain_field).collect(),
            Body::Line(value) => both(&value).into_iter().map(plain_field).collect(),
        };
        (key(&self.key), self.comments, fields)
    }
}

/// Returns the actions for which a word for both directions stands, such as `"rw"`, as the keys
/// `read` and `write` with their values.
fn both(value: &Value) -> Vec<(String, Value)> {
    let Value::Text(word) = value else {
        return Vec::new();
    };
    let short = BOTH.iter().find(|(short, _)| short == word);
    let each = short.iter().flat_map(|(_, actions)| actions.iter());
    ["read", "write"]
        .into_iter()
        .zip(each)
        .map(|(access, action)| (access.to_owned(), Value::text(action.word())))
        .collect()
}

/// Returns the word that means the same as a table, such as `"rw"`. If there is no such word,
/// returns the table.
pub(crate) fn shortened(fields: Vec<(String, Value)>) -> Value {
    let word = |name: &str| match fields.iter().find(|(key, _)| key == name) {
        Some((_, Value::Text(word))) => Some(word.as_str()),
        _ => None,
    };
    let found = match (fields.len(), word("read"), word("write")) {
        (2, Some(read), Some(write)) => BOTH
            .iter()
            .find(|(_, actions)| actions.iter().map(crate::Action::word).eq([read, write])),
        _ => None,
    };
    match found {
        Some((short, _)) => Value::text(*short),
        None => Value::Table(fields),
    }
}
