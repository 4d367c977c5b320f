//! Includes: texts of a policy in other files.

use std::fmt;

use super::Reader;
use super::value::Item;
use crate::limits::{MAX_DEPTH, MAX_FILES};
use crate::mistake::MistakeKind;
use crate::policy::{At, SourceId};
use crate::source::Source;
use msrgate_program::{one_line, shown_name};

/// An opener of included texts. The caller implements it, because parsing itself opens no file.
pub trait Includes {
    /// Returns the text that an `include` of `path` in the text `from` means. If several paths lead
    /// to the same text, each returns the same [identity](Source::identity), so that the text is
    /// read once.
    ///
    /// # Errors
    /// Returns [`IncludeError`] if the text cannot be read.
    fn open(&mut self, from: &Source, path: &str) -> Result<Source, IncludeError>;
}

/// The reason for which a text cannot be included, in a few words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IncludeError {
    why: String,
    help: Option<String>,
}

impl IncludeError {
    /// Returns an error for this reason.
    #[must_use]
    pub fn new(why: impl Into<String>) -> Self {
        Self {
            why: why.into(),
            help: None,
        }
    }

    /// Adds advice: the text to write instead.
    #[must_use]
    pub fn with_help(self, help: impl Into<String>) -> Self {
        Self {
            help: Some(help.into()),
            ..self
        }
    }
}

impl fmt::Display for IncludeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&one_line(&self.why))
    }
}

impl std::error::Error for IncludeError {}

/// An opener of included texts that opens nothing: every include is an error.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoIncludes;

impl Includes for NoIncludes {
    fn open(&mut self, _: &Source, _: &str) -> Result<Source, IncludeError> {
        Err(IncludeError::new("included files are not available here"))
    }
}

impl Reader<'_> {
    /// Reads the texts that an `include` names. Each text is read once.
    pub(super) fn include(&mut self, item: Item<'_>, way: &mut Vec<SourceId>) {
        let this = self.current;
        let names = self.strings(item);
        if names.len() > MAX_FILES {
            let (what, found, limit) = ("names in an `include`", names.len(), MAX_FILES);
            let at = self.key_at(item.key);
            self.report(at, MistakeKind::TooMany { what, found, limit });
            return;
        }
        for (path, span) in names {
            let at = self.at(span);
            if let Some(id) = self.included(path, at, way) {
                let below = self.below[id.number()];
                self.below[this.number()].extend(below);
                self.below[this.number()].insert(id);
                let height = self.heights[this.number()].max(1 + self.heights[id.number()]);
                self.heights[this.number()] = height;
            }
        }
    }

    /// Returns the text that `path` means in the current text, and reads that text if it is new.
    fn included(&mut self, path: &str, at: At, way: &mut Vec<SourceId>) -> Option<SourceId> {
        let this = self.current;
        let includes = self.includes.as_mut()?;
        let unreadable = |IncludeError { why, help }| {
            let path = shown_name(path);
            MistakeKind::Unreadable { path, why, help }
        };
        let too_deep = || {
            let why = format!("the chain of includes has more than {MAX_DEPTH} files");
            let error = IncludeError::new(why)
                .with_help("include the file from a file earlier in the chain");
            unreadable(error)
        };
        if way.len() >= MAX_DEPTH {
            self.report(at, too_deep());
            return None;
        }
        let source = match includes.open(&self.sources[this.number()], path) {
            Ok(source) => source,
            Err(error) => {
                self.report(at, unreadable(error));
                return None;
            }
        };
        let mut sources = self.sources.iter();
        let known = sources.position(|known| known.identity() == source.identity());
        match known.map(SourceId::new) {
            Some(id) if way.contains(&id) => {
                let kind = self.cycle(path, id, way);
                self.report(at, kind);
                None
            }
            // The longest chain of includes counts, even if the file was first reached by a shorter
            // one.
            Some(id) if way.len() + self.heights[id.number()] > MAX_DEPTH => {
                self.report(at, too_deep());
                None
            }
            Some(id) => Some(id),
            None if self.sources.len() == MAX_FILES => {
                let (what, found, limit) = ("files", MAX_FILES + 1, MAX_FILES);
                self.report(at, MistakeKind::TooMany { what, found, limit });
                // The limit is reached, so no further file is opened.
                self.includes = None;
                None
            }
            None => {
                let id = SourceId::new(self.sources.len());
                let before = self.entrance.replace(at);
                self.read(&source, way);
                (self.current, self.entrance) = (this, before);
                Some(id)
            }
        }
    }

    fn cycle(&self, path: &str, id: SourceId, way: &[SourceId]) -> MistakeKind {
        let from = way.iter().position(|&one| one == id).unwrap_or(0);
        let names = way[from..]
            .iter()
            .chain([&id])
            .map(|id| shown_name(self.sources[id.number()].name()));
        MistakeKind::Cycle {
            path: shown_name(path),
            way: names.collect::<Vec<_>>().join(" → "),
        }
    }
}
