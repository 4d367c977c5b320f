//! Parses a policy's text, and the texts it includes, into a [`Policy`] and the mistakes of each
//! text.

mod duplicate;
mod entry;
mod include;
mod keys;
mod settings;
mod size;
mod syntax;
mod value;
mod when;
pub(crate) mod words;

use std::collections::BTreeSet;

use msrgate_program::{TextReader, is_shown, shown_name};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::layout;
use crate::limits::{MAX_LINE, MAX_MISTAKES};
use crate::mistake::{Label, Mistake, MistakeKind, Mistakes};
use crate::nearest;
use crate::policy::{At, Entry, Policy, SourceId, SourceSet, When};
use crate::source::{Source, quoted, small};

pub use include::{IncludeError, Includes, NoIncludes};
use settings::Said;
pub(crate) use settings::Stated;
use size::Size;
use value::{Item, items};

/// The content of a policy's texts, and the mistakes in each of them.
pub(crate) struct Parsed {
    /// The texts of the policy: its own text first, then those that it includes.
    pub(crate) sources: Vec<Source>,
    /// The policy as far as it was understood: mistaken parts are left out, and nothing is
    /// resolved yet. `None` if the settings are missing.
    pub(crate) policy: Option<Policy>,
    /// The mistakes in all texts.
    pub(crate) mistakes: Vec<Mistake>,
    /// False if the text was read without its includes, and does not have a `default`.
    pub(crate) has_default: bool,
    /// True if a device has a mistake. Parsing then does not also report the device as missing.
    pub(crate) has_broken_device: bool,
    /// The settings that each text by itself states, indexed by [`SourceId`].
    pub(crate) stated: Vec<Stated>,
}

/// Reads a policy's text and all texts that it includes. Without `includes`, no include is
/// followed, and a text without a `default` gets one.
pub(crate) fn read(source: &Source, includes: Option<&mut dyn Includes>) -> Parsed {
    let is_alone = includes.is_none();
    let mut reader = Reader::new(includes);
    reader.read(source, &mut Vec::new());
    let has_default = if is_alone {
        reader.stand_in_for_default()
    } else {
        true
    };
    reader.finish(has_default)
}

/// Returns the result of parsing a text that has only this mistake.
pub(crate) fn mistake_in(
    source: &Source,
    span: std::ops::Range<usize>,
    kind: MistakeKind,
) -> Mistakes {
    let at = At::new(SourceId::new(0), span.into());
    let places = vec![Label::bare(at)];
    Mistakes::new(vec![source.clone()], vec![Mistake { kind, places }])
}

/// The reader of a policy's texts. It collects their mistakes, leaves mistaken parts out, and reads
/// on.
struct Reader<'i> {
    /// The opener of included texts. `None`: includes are not followed.
    includes: Option<&'i mut dyn Includes>,
    sources: Vec<Source>,
    /// The text that is being read.
    current: SourceId,
    /// The place of the include that led to the current text.
    entrance: Option<At>,
    /// The texts that each text includes, directly or through others; indexed by [`SourceId`].
    below: Vec<SourceSet>,
    /// The height of each text: the number of files in the longest chain of includes that starts
    /// with it.
    heights: Vec<usize>,
    size: Size,
    said: Vec<Said>,
    whens: Vec<When>,
    entries: Vec<Entry>,
    groups: usize,
    mistakes: Vec<Mistake>,
    /// True if a misspelt or misplaced `default` was reported. Parsing then does not also report
    /// the `default` as missing.
    has_lost_default: bool,
    /// True if a mistake in `[device]` was reported. Parsing then does not also report a device as
    /// missing.
    has_broken_device: bool,
}

impl<'i> Reader<'i> {
    fn new(includes: Option<&'i mut dyn Includes>) -> Self {
        Self {
            includes,
            sources: Vec::new(),
            current: SourceId::new(0),
            entrance: None,
            below: Vec::new(),
            heights: Vec::new(),
            size: Size::default(),
            said: Vec::new(),
            whens: Vec::new(),
            entries: Vec::new(),
            groups: 0,
            mistakes: Vec::new(),
            has_lost_default: false,
            has_broken_device: false,
        }
    }

    /// Reads one text, after the texts that it includes. `way` is the chain of texts that leads to
    /// this one.
    fn read(&mut self, source: &Source, way: &mut Vec<SourceId>) {
        let id = SourceId::new(self.sources.len());
        self.sources.push(source.clone());
        self.below.push(SourceSet::default());
        self.said.push(Said::default());
        self.heights.push(1);
        self.current = id;
        // This check comes before the size is counted. A text that is not a policy may be secret.
        // If the size of such a text counted, later messages about the size limit would reveal the
        // size.
        if let Err(kind) = judged(source.text()) {
            self.report_text(kind);
            return;
        }
        if !self.has_readable_size(source) {
            return;
        }
        let text = size::to_the_last_mistake(source.text());
        let (document, errors) = DeTable::parse_recoverable(text);
        // The check of the text's head may have been cut off within the version number, so the
        // version is checked once more.
        if let Err(kind) = language(document.get_ref(), &errors) {
            self.report_text(kind);
            return;
        }
        if self.has_long_lines(source) {
            return;
        }
        let lines = self.not_toml(text, &errors);
        self.hidden(source);
        let before = self.mistakes.len();
        way.push(id);
        self.document(document.get_ref(), errors.is_empty(), way);
        way.pop();
        self.forget(before, id, &lines);
    }

    /// Drops the mistakes numbered `from` and later that are on these lines of a text. The lines
    /// are not TOML, which was reported before and is the cause of these mistakes.
    fn forget(&mut self, from: usize, id: SourceId, lines: &BTreeSet<u32>) {
        if lines.is_empty() {
            return;
        }
        let source = &self.sources[id.number()];
        // If a value is missing, the parser makes up a value. The made-up value has the offset 0
        // and the length 0.
        let is_there = |at: At| {
            let is_nowhere = (at.span().offset(), at.span().len()) == (0, 0);
            at.source() == id && (is_nowhere || lines.contains(&source.place(at.span()).line))
        };
        let mut number = 0;
        self.mistakes.retain(|mistake| {
            number += 1;
            number <= from || !mistake.places.iter().any(|label| is_there(label.at))
        });
    }

    /// Checks the size of a text. A text beyond a limit has one mistake, and is not read.
    fn has_readable_size(&mut self, source: &Source) -> bool {
        if let Err(kind) = self.size.add(source.text()) {
            // If the limit for all texts is exceeded, no further text is read.
            self.includes = None;
            self.report_text(kind);
            return false;
        }
        true
    }

    /// Checks the lengths of lines. A text with a line beyond the limit has one mistake, and is
    /// not read.
    fn has_long_lines(&mut self, source: &Source) -> bool {
        let before = self.mistakes.len();
        for (line, bytes) in source.lines_over(MAX_LINE) {
            let limit = MAX_LINE;
            self.report_text(MistakeKind::LongLine { line, bytes, limit });
        }
        self.mistakes.len() != before
    }

    /// Reports characters that a reviewer does not see. TOML itself forbids the control characters
    /// of ASCII.
    fn hidden(&mut self, source: &Source) {
        const MOST: usize = 20;
        let mut reader = TextReader::default();
        let is_hidden = |&(at, c): &(usize, char)| {
            let is_mark_of_utf8 = at == 0 && c == '\u{feff}';
            !reader.sees(c) && !c.is_ascii() && !is_mark_of_utf8
        };
        for (at, c) in source.text().char_indices().filter(is_hidden).take(MOST) {
            let number = u32::from(c);
            let escape = match c {
                ..='\u{ffff}' => format!("\\u{number:04x}"),
                _ => format!("\\U{number:08x}"),
            };
            let why = if is_shown(c) {
                " (a letter may have at most four such marks)"
            } else {
                ""
            };
            let kind = MistakeKind::Hidden {
                character: format!("U+{number:04X}"),
                help: format!("delete it, or write `{escape}` in a string in double quotes{why}"),
            };
            self.report(self.at((at..at + c.len_utf8()).into()), kind);
        }
    }

    /// Reads the keys of one text.
    fn document(&mut self, document: &DeTable<'_>, is_toml: bool, way: &mut Vec<SourceId>) {
        let items = items(document);
        if let Some(&item) = items.iter().find(|item| item.key.text == "include") {
            self.include(item, way);
        }
        for item in items {
            match item.key.text {
                // Both keys were read before.
                "policy" | "include" => {}
                "msrs" => self.msrs(item, None),
                "when" => self.whens(item),
                // Below a broken table head, the table's keys seem to stand outside of any table.
                other if !words::TOP.contains(&other) && !is_toml => {}
                other if !words::TOP.contains(&other) => self.unknown_setting(item, document),
                _ => self.setting(item),
            }
        }
        if is_toml && way.len() == 1 && self.includes.is_some() {
            self.default_is_there();
        }
    }

    /// Reports a key at the top level that is not a setting: perhaps an entry.
    fn unknown_setting(&mut self, item: Item<'_>, document: &DeTable<'_>) {
        if self.has_enough_mistakes() {
            return;
        }
        let key = item.key.text;
        let meant = nearest::meant(key, &words::TOP);
        self.has_lost_default |= meant == Some("default");
        self.has_broken_device |= meant == Some("device");
        let name = quoted(key);
        let (place, help) = if words::DEVICES.iter().any(|(device, _)| *device == key) {
            self.has_broken_device = true;
            let place = "at the top of the policy, where only settings may be";
            (place, format!("write `[device.{name}]`"))
        } else if meant.is_none() && entry::names_msrs(key) {
            let written = layout::key(&name);
            let help = match (item.value.get_ref(), document.contains_key("msrs")) {
                (DeValue::Table(_), _) => format!("write `[msrs.{written}]`"),
                (_, true) => "move it below `[msrs]`".to_owned(),
                (_, false) => "write `[msrs]` above it, on a line of its own".to_owned(),
            };
            (
                "above `[msrs]`, where only settings of the policy may be",
                help,
            )
        } else {
            self.unknown_key(item.key, &words::TOP);
            return;
        };
        let key = name;
        self.report(
            self.key_at(item.key),
            MistakeKind::Misplaced { key, place, help },
        );
    }

    fn finish(mut self, has_default: bool) -> Parsed {
        let stated = self.stated();
        let settings = self.settings();
        let policy = settings.map(|settings| Policy {
            sources: self.sources.clone(),
            settings,
            whens: std::mem::take(&mut self.whens),
            entries: std::mem::take(&mut self.entries),
            below: std::mem::take(&mut self.below),
        });
        Parsed {
            sources: self.sources,
            policy,
            mistakes: self.mistakes,
            has_default,
            has_broken_device: self.has_broken_device,
            stated,
        }
    }
}

impl Reader<'_> {
    fn at(&self, span: miette::SourceSpan) -> At {
        At::new(self.current, span)
    }

    fn report(&mut self, at: At, kind: MistakeKind) {
        self.mistake(Mistake {
            kind,
            places: vec![Label::bare(at)],
        });
    }

    /// Reports a mistake of the current text as a whole, at the place that includes the text.
    fn report_text(&mut self, kind: MistakeKind) {
        let name = shown_name(self.text().name());
        let place = |at| Label::saying(at, format!("the mistake is in `{name}`"));
        self.mistake(Mistake {
            kind,
            places: self.entrance.map(place).into_iter().collect(),
        });
    }

    fn mistake(&mut self, mistake: Mistake) {
        if !self.has_enough_mistakes() {
            self.mistakes.push(mistake);
        }
    }

    /// Returns true if there are [`MAX_MISTAKES`] mistakes, so that reading should stop. Each
    /// mistake may cost a search for the word that was meant, and nobody reads more mistakes.
    fn has_enough_mistakes(&self) -> bool {
        self.mistakes.len() >= MAX_MISTAKES
    }

    fn missing(&mut self, key: &'static str, help: &'static str) {
        self.report_text(MistakeKind::MissingKey { key, help });
    }

    fn text(&self) -> &Source {
        &self.sources[self.current.number()]
    }
}

/// The version of the policy language that msrgate reads.
const VERSION: &str = "1";

/// Checks the version of the language that a text states before any line that is not TOML. If the
/// text states `policy = 1`, it is a policy, and messages may quote it.
///
/// # Errors
/// Returns a mistake if the text is not a policy or has another version. Messages may then reveal
/// nothing of the text but the version that it states.
fn language(document: &DeTable<'_>, errors: &[toml::de::Error]) -> Result<(), MistakeKind> {
    let none = MistakeKind::NotAPolicy { line: None };
    let Some((_, version)) = document.get_key_value("policy") else {
        return Err(none);
    };
    let end = version.span().end;
    let is_later = |error: &toml::de::Error| error.span().is_none_or(|span| span.start >= end);
    match version.get_ref() {
        DeValue::Integer(number) if errors.iter().all(is_later) => match number.to_string() {
            number if number == VERSION => Ok(()),
            number => Err(MistakeKind::UnknownVersion(quoted(&number))),
        },
        _ => Err(none),
    }
}

/// Checks the version of the language in the [head](head_of) of a text. The memory needed does not
/// depend on the text's length.
fn judged(text: &str) -> Result<(), MistakeKind> {
    let head = &text[..head_of(text.as_bytes()).len()];
    let (document, errors) = DeTable::parse_recoverable(size::to_the_last_mistake(head));
    language(document.get_ref(), &errors).map_err(|kind| match kind {
        MistakeKind::NotAPolicy { .. } => {
            let first = errors.first().and_then(toml::de::Error::span);
            let line = first.map(|span| head[..span.start].matches('\n').count() + 1);
            MistakeKind::NotAPolicy {
                line: line.map(small),
            }
        }
        other => other,
    })
}

/// The number of bytes at the start of a text within which it has to say that it is a policy: 64
/// KiB.
pub const HEAD_BYTES: usize = 64 << 10;

/// Returns the complete lines within the first [`HEAD_BYTES`] of a text. A text of at most
/// [`HEAD_BYTES`] is returned whole.
#[must_use]
pub fn head_of(text: &[u8]) -> &[u8] {
    if text.len() <= HEAD_BYTES {
        return text;
    }
    let end = text[..HEAD_BYTES].iter().rposition(|byte| *byte == b'\n');
    &text[..end.map_or(0, |end| end + 1)]
}

/// Returns true if a text says `policy = 1` in its [head](head_of), before any line that is not
/// TOML. Messages about any other text must reveal nothing of that text, not even its length.
#[must_use]
pub fn is_policy(text: &str) -> bool {
    judged(text).is_ok()
}

/// A TOML value with its place.
type Value<'v> = Spanned<DeValue<'v>>;

#[cfg(test)]
mod tests;
