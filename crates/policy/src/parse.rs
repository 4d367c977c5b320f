//! From a policy's text, and those it includes, to a [`Policy`], with what is wrong in each text.

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
    /// The texts, the policy's own first.
    pub(crate) sources: Vec<Source>,
    /// The policy, as far as it is understood: nothing of it is resolved, and what is wrong is left out.
    /// `None` without its settings.
    pub(crate) policy: Option<Policy>,
    /// What is wrong.
    pub(crate) mistakes: Vec<Mistake>,
    /// Whether the policy's own text has a `default`.
    pub(crate) has_default: bool,
    /// True if something is wrong with a device: then it is not reported as missing, too.
    pub(crate) has_broken_device: bool,
    /// What each text says for itself, by [`SourceId`].
    pub(crate) stated: Vec<Stated>,
}

/// Reads a policy's text with all it includes. Without `includes` they are not followed, and a text that has
/// no `default` gets one.
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

/// The one mistake of a text.
pub(crate) fn mistake_in(
    source: &Source,
    span: std::ops::Range<usize>,
    wrong: MistakeKind,
) -> Mistakes {
    let at = At::new(SourceId::new(0), span.into());
    let places = vec![Label::bare(at)];
    Mistakes::new(vec![source.clone()], vec![Mistake { wrong, places }])
}

/// Collects mistakes on the way through the texts: what is wrong is left out, the rest goes on.
struct Reader<'i> {
    /// `None`: includes are not followed.
    includes: Option<&'i mut dyn Includes>,
    sources: Vec<Source>,
    /// The text that is being read.
    current: SourceId,
    /// The place of the include that led to the current text.
    entrance: Option<At>,
    /// The texts that each text includes, in one step or more.
    below: Vec<SourceSet>,
    /// For each text the files of the longest row, from it on, of which each includes the next.
    heights: Vec<usize>,
    size: Size,
    said: Vec<Said>,
    whens: Vec<When>,
    entries: Vec<Entry>,
    groups: usize,
    mistakes: Vec<Mistake>,
    /// True if a misspelt or misplaced `default` was reported: then it is not reported as missing, too.
    has_lost_default: bool,
    /// True if something in `[device]` was reported: then no device is reported as missing, too.
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

    /// Reads one text, and first those it includes. `way` are the texts that led here.
    fn read(&mut self, source: &Source, way: &mut Vec<SourceId>) {
        let id = SourceId::new(self.sources.len());
        self.sources.push(source.clone());
        self.below.push(SourceSet::default());
        self.said.push(Said::default());
        self.heights.push(1);
        self.current = id;
        // Before it is counted: how much there may still be of the others would tell the size of a secret.
        if let Err(wrong) = judged(source.text()) {
            self.wrong_as_a_whole(wrong);
            return;
        }
        if !self.has_readable_size(source) {
            return;
        }
        let text = size::to_the_last_mistake(source.text());
        let (document, errors) = DeTable::parse_recoverable(text);
        // The head may end within the number.
        if let Err(wrong) = language(document.get_ref(), &errors) {
            self.wrong_as_a_whole(wrong);
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

    /// Forgets the mistakes from number `from` on that are on these lines of a text: it has others that are the cause.
    fn forget(&mut self, from: usize, id: SourceId, lines: &BTreeSet<u32>) {
        if lines.is_empty() {
            return;
        }
        let source = &self.sources[id.number()];
        // A value that stands in for a missing one has no place.
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

    /// Beyond a limit is a mistake of the whole text, which is then not looked at.
    fn has_readable_size(&mut self, source: &Source) -> bool {
        if let Err(wrong) = self.size.add(source.text()) {
            // What is beyond the limit for all texts is not looked at in any other.
            self.includes = None;
            self.wrong_as_a_whole(wrong);
            return false;
        }
        true
    }

    /// A line beyond its limit is a mistake of the whole text, which is then not looked at.
    fn has_long_lines(&mut self, source: &Source) -> bool {
        let before = self.mistakes.len();
        for (line, bytes) in source.lines_over(MAX_LINE) {
            let limit = MAX_LINE;
            self.wrong_as_a_whole(MistakeKind::LongLine { line, bytes, limit });
        }
        self.mistakes.len() != before
    }

    /// Complains of characters that a reviewer does not see. TOML itself forbids the controls of ASCII.
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
                "a letter may have four such marks; "
            } else {
                ""
            };
            let wrong = MistakeKind::Hidden {
                character: format!("U+{number:04X}"),
                help: format!(
                    "delete it; {why}a string in double quotes may have it as `{escape}`"
                ),
            };
            self.wrong(self.at((at..at + c.len_utf8()).into()), wrong);
        }
    }

    /// The keys of one text.
    fn document(&mut self, document: &DeTable<'_>, is_toml: bool, way: &mut Vec<SourceId>) {
        let items = items(document);
        if let Some(&item) = items.iter().find(|item| item.key.text == "include") {
            self.include(item, way);
        }
        for item in items {
            match item.key.text {
                // Both were looked at.
                "policy" | "include" => {}
                "msrs" => self.msrs(item, None),
                "when" => self.whens(item),
                // Where a table's head is broken, its keys seem to stand outside of it.
                other if !words::TOP.contains(&other) && !is_toml => {}
                other if !words::TOP.contains(&other) => self.unknown_setting(item, document),
                _ => self.setting(item),
            }
        }
        if is_toml && way.len() == 1 && self.includes.is_some() {
            self.default_is_there();
        }
    }

    /// Complains of a key at the top that is no setting: an entry, perhaps.
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
            let place = "at the top of the policy, where settings stand";
            (place, format!("write `[device.{name}]`"))
        } else if meant.is_none() && entry::names_msrs(key) {
            let written = layout::key(&name);
            let help = match (item.value.get_ref(), document.contains_key("msrs")) {
                (DeValue::Table(_), _) => format!("write `[msrs.{written}]`"),
                (_, true) => "move it below `[msrs]`".to_owned(),
                (_, false) => "write `[msrs]` above it, on a line of its own".to_owned(),
            };
            ("above `[msrs]`, where settings of the policy stand", help)
        } else {
            self.unknown_key(item.key, &words::TOP);
            return;
        };
        let key = name;
        self.wrong(
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

    fn wrong(&mut self, at: At, wrong: MistakeKind) {
        self.mistake(Mistake {
            wrong,
            places: vec![Label::bare(at)],
        });
    }

    /// Complains of the current text as a whole, at the place that includes it.
    fn wrong_as_a_whole(&mut self, wrong: MistakeKind) {
        let name = shown_name(self.text().name());
        let place = |at| Label::saying(at, format!("in `{name}`"));
        self.mistake(Mistake {
            wrong,
            places: self.entrance.map(place).into_iter().collect(),
        });
    }

    fn mistake(&mut self, mistake: Mistake) {
        if !self.has_enough_mistakes() {
            self.mistakes.push(mistake);
        }
    }

    /// Each mistake may cost a search for what was meant, and nobody reads so many.
    fn has_enough_mistakes(&self) -> bool {
        self.mistakes.len() >= MAX_MISTAKES
    }

    fn missing(&mut self, key: &'static str, help: &'static str) {
        self.wrong_as_a_whole(MistakeKind::MissingKey { key, help });
    }

    fn text(&self) -> &Source {
        &self.sources[self.current.number()]
    }
}

/// The language version this program reads.
const VERSION: &str = "1";

/// Looks for the language that a text says it is in, before anything that is not TOML. With `policy = 1` it is a policy,
/// and messages may quote it.
///
/// # Errors
/// It is no policy, or one in another language, whose number is all that is known of the text.
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

/// Looks for the language in the [head](head_of) of a text. However long the text is, this takes little memory.
fn judged(text: &str) -> Result<(), MistakeKind> {
    let head = &text[..head_of(text.as_bytes()).len()];
    let (document, errors) = DeTable::parse_recoverable(size::to_the_last_mistake(head));
    language(document.get_ref(), &errors).map_err(|wrong| match wrong {
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

/// Bytes within which a text has to say that it is a policy: 64 KiB.
pub const HEAD_BYTES: usize = 64 << 10;

/// The lines of a text that lie within its first [`HEAD_BYTES`].
#[must_use]
pub fn head_of(text: &[u8]) -> &[u8] {
    if text.len() <= HEAD_BYTES {
        return text;
    }
    let end = text[..HEAD_BYTES].iter().rposition(|byte| *byte == b'\n');
    &text[..end.map_or(0, |end| end + 1)]
}

/// Returns true if a text says `policy = 1` in its [head](head_of), before anything that is not TOML. A message about
/// any other text tells nothing of it, its length neither.
#[must_use]
pub fn is_policy(text: &str) -> bool {
    judged(text).is_ok()
}

/// A value as TOML has it, with its place.
type Value<'v> = Spanned<DeValue<'v>>;

#[cfg(test)]
mod tests;
