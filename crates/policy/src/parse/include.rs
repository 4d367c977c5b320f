//! Policies in other files.

use std::fmt;

use super::value::Item;
use super::{MAX_DEPTH, Reader};
use crate::mistake::Wrong;
use crate::policy::SourceId;
use crate::source::Source;
use crate::source::quoted;

/// Where included texts come from. Parsing itself opens no file.
pub trait Includes {
    /// The text that `path` means in `from`, under a name that is the same for the same text.
    ///
    /// # Errors
    /// It cannot be had.
    fn open(&mut self, from: &Source, path: &str) -> Result<Source, IncludeError>;
}

/// Why a text cannot be included, in a few words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IncludeError(String);

impl IncludeError {
    /// For this reason.
    #[must_use]
    pub fn new(why: impl Into<String>) -> Self {
        Self(why.into())
    }
}

impl fmt::Display for IncludeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for IncludeError {}

/// For texts that stand alone.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoIncludes;

impl Includes for NoIncludes {
    fn open(&mut self, _: &Source, _: &str) -> Result<Source, IncludeError> {
        Err(IncludeError::new(
            "this text has no place from which others could be read",
        ))
    }
}

impl Reader<'_> {
    /// Reads the texts that an `include` names. One that was read before is not read again.
    pub(super) fn include(&mut self, item: Item<'_>, way: &mut Vec<SourceId>) {
        let this = self.current;
        for (path, span) in self.strings(item) {
            let at = self.at(span);
            let Some(includes) = &mut self.includes else {
                continue;
            };
            let opened = includes.open(&self.sources[this.number()], path);
            let source = match opened {
                Ok(source) if way.len() < MAX_DEPTH => source,
                Ok(_) => {
                    let why = format!("includes lie more than {MAX_DEPTH} deep");
                    let path = quoted(path);
                    self.wrong(at, Wrong::Unreadable { path, why });
                    continue;
                }
                Err(error) => {
                    let (path, why) = (quoted(path), error.to_string());
                    self.wrong(at, Wrong::Unreadable { path, why });
                    continue;
                }
            };
            let known = self
                .sources
                .iter()
                .position(|known| known.name() == source.name());
            let id = match known.map(SourceId::new) {
                Some(id) if way.contains(&id) => {
                    let wrong = self.cycle(path, id, way);
                    self.wrong(at, wrong);
                    continue;
                }
                Some(id) => id,
                None => {
                    let id = SourceId::new(self.sources.len());
                    self.read(&source, way);
                    self.current = this;
                    id
                }
            };
            let below = self.below[id.number()].clone();
            self.below[this.number()].extend(below.into_iter().chain([id]));
        }
    }

    fn cycle(&self, path: &str, id: SourceId, way: &[SourceId]) -> Wrong {
        let from = way.iter().position(|&one| one == id).unwrap_or(0);
        let names = way[from..]
            .iter()
            .chain([&id])
            .map(|id| quoted(self.sources[id.number()].name()));
        Wrong::Cycle {
            path: quoted(path),
            way: names.collect::<Vec<_>>().join(" → "),
        }
    }
}
