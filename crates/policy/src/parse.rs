//! From a policy's text, and those it includes, to a [`Policy`], or to all mistakes at once.

mod conflict;
mod duplicate;
mod entry;
mod finals;
mod include;
mod keys;
mod settings;
mod value;
mod variants;
mod when;
pub(crate) mod words;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::mistake::{Label, Mistake, Mistakes, Wrong};
use crate::policy::{At, Entry, Policy, SourceId, When};
use crate::source::Source;

pub use include::{IncludeError, Includes, NoIncludes};
use settings::Said;
use value::items;
pub(crate) use variants::{overridden, variants};

/// The most bytes a policy may have, its includes not counted: 16 MiB.
pub const MAX_BYTES: usize = 16 << 20;

/// The most bytes a line of a policy may have, so that a message can quote it.
pub const MAX_LINE: usize = 4096;

/// The most entries a policy may have, those of its includes among them.
pub const MAX_ENTRIES: usize = 250_000;

/// The most entries for groups, which are compared with all others.
const MAX_GROUPS: usize = 500;

/// The most `[[when]]`s.
const MAX_WHENS: usize = 32;

/// With so many mistakes, the entries that follow are not looked at.
pub(crate) const MAX_MISTAKES: usize = 1000;

/// How deep includes may lie in includes.
pub const MAX_DEPTH: usize = 8;

/// Reads a policy with all it includes.
///
/// # Errors
/// All mistakes, with their places: bad TOML, unknown keys, words and names, includes that cannot
/// be read, entries that overlap and disagree, answers that cannot be given. Text over
/// [`MAX_BYTES`], with a line over [`MAX_LINE`] or with more than [`MAX_ENTRIES`] is refused unread.
pub fn parse(source: &Source, includes: &mut dyn Includes) -> Result<Policy, Box<Mistakes>> {
    let mut reader = Reader::new(Some(includes));
    reader.read(source, &mut Vec::new());
    reader.finish()
}

/// Looks for mistakes in one text, for which nothing is included, and which may be meant for being
/// included: what another text may mend is none.
///
/// # Errors
/// Its mistakes.
pub(crate) fn check_alone(source: &Source) -> Result<(), Box<Mistakes>> {
    let mut reader = Reader::new(None);
    reader.read(source, &mut Vec::new());
    let has_default = reader.stand_in_for_default();
    reader.finish_without(|wrong| match wrong {
        Wrong::OverridesNothing(_) | Wrong::DeviceNotSetUp { .. } => true,
        Wrong::NamesTheLastMsr(_) | Wrong::UnknownNeedsAllow => !has_default,
        _ => false,
    })?;
    Ok(())
}

/// The one mistake of a text.
pub(crate) fn mistake_in(source: &Source, span: std::ops::Range<usize>, wrong: Wrong) -> Mistakes {
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
    /// Which texts each text includes, in one step or more.
    below: Vec<Vec<SourceId>>,
    said: Vec<Said>,
    whens: Vec<When>,
    entries: Vec<Entry>,
    groups: usize,
    mistakes: Vec<Mistake>,
}

impl<'i> Reader<'i> {
    fn new(includes: Option<&'i mut dyn Includes>) -> Self {
        Self {
            includes,
            sources: Vec::new(),
            current: SourceId::new(0),
            below: Vec::new(),
            said: Vec::new(),
            whens: Vec::new(),
            entries: Vec::new(),
            groups: 0,
            mistakes: Vec::new(),
        }
    }

    /// Reads one text, and first those it includes. `way` are the texts that led here.
    fn read(&mut self, source: &Source, way: &mut Vec<SourceId>) {
        let id = SourceId::new(self.sources.len());
        self.sources.push(source.clone());
        self.below.push(Vec::new());
        self.said.push(Said::default());
        self.current = id;
        if !self.has_readable_size(source) {
            return;
        }
        let (document, errors) = DeTable::parse_recoverable(source.text());
        let is_toml = errors.is_empty();
        self.not_toml(&errors);
        way.push(id);
        self.document(document.get_ref(), is_toml, way);
        way.pop();
    }

    /// Beyond a limit is a mistake of the whole text, which is then not looked at.
    fn has_readable_size(&mut self, source: &Source) -> bool {
        let before = self.mistakes.len();
        let bytes = source.text().len();
        if bytes > MAX_BYTES {
            let limit = MAX_BYTES;
            self.wrong_as_a_whole(Wrong::TooLong { bytes, limit });
            return false;
        }
        for (line, bytes) in source.lines_over(MAX_LINE) {
            let limit = MAX_LINE;
            self.wrong_as_a_whole(Wrong::LongLine { line, bytes, limit });
        }
        self.mistakes.len() == before
    }

    /// The keys of one text.
    fn document(&mut self, document: &DeTable<'_>, is_toml: bool, way: &mut Vec<SourceId>) {
        let items = items(document);
        if let Some(&item) = items.iter().find(|item| item.key.text == "include") {
            self.include(item, way);
        }
        let mut has_version = false;
        for item in items {
            match item.key.text {
                "policy" => {
                    has_version = true;
                    self.version(item);
                }
                "include" => {}
                "msrs" => self.msrs(item, None),
                "when" => self.whens(item),
                // Where a table's head is broken, its keys seem to stand outside of it.
                other if !words::TOP.contains(&other) && !is_toml => {}
                other if !words::TOP.contains(&other) => self.unknown_key(item.key, &words::TOP),
                _ => self.setting(item),
            }
        }
        if is_toml && !has_version {
            self.missing(
                "policy",
                "the language version: write `policy = 1` at the top",
            );
        }
        if is_toml && way.len() == 1 && self.includes.is_some() {
            self.default_is_there();
        }
    }

    fn finish(self) -> Result<Policy, Box<Mistakes>> {
        self.finish_without(|_| false)
    }

    /// The policy, unless there are mistakes other than these.
    fn finish_without(mut self, these: impl Fn(&Wrong) -> bool) -> Result<Policy, Box<Mistakes>> {
        let stated = self.stated();
        let settings = self.settings();
        let policy = settings.map(|settings| Policy {
            sources: self.sources.clone(),
            settings,
            whens: std::mem::take(&mut self.whens),
            entries: std::mem::take(&mut self.entries),
            below: std::mem::take(&mut self.below),
        });
        if let Some(policy) = &policy {
            self.mistakes.extend(variants::mistakes(policy, &stated));
        }
        self.mistakes.retain(|mistake| !these(&mistake.wrong));
        match policy {
            Some(policy) if self.mistakes.is_empty() => Ok(policy),
            _ => Err(Box::new(Mistakes::new(self.sources, self.mistakes))),
        }
    }
}

impl Reader<'_> {
    fn at(&self, span: miette::SourceSpan) -> At {
        At::new(self.current, span)
    }

    fn wrong(&mut self, at: At, wrong: Wrong) {
        self.mistakes.push(Mistake {
            wrong,
            places: vec![Label::bare(at)],
        });
    }

    fn wrong_as_a_whole(&mut self, wrong: Wrong) {
        self.mistakes.push(Mistake {
            wrong,
            places: Vec::new(),
        });
    }

    fn missing(&mut self, key: &'static str, help: &'static str) {
        self.wrong_as_a_whole(Wrong::MissingKey { key, help });
    }

    fn text(&self) -> &Source {
        &self.sources[self.current.number()]
    }
}

/// A value as TOML has it, with its place.
type Value<'v> = Spanned<DeValue<'v>>;

#[cfg(test)]
mod tests;
