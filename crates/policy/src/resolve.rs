//! Resolves a policy's entries into the rules for each kind of processor, or into all its mistakes
//! at once.

mod active;
mod conflict;
mod finals;
mod inherited;
mod unsound;
mod variants;

use std::sync::Arc;

use msrgate_filter::Access;
use msrgate_program::{
    EntryId, FileId, Layers, Line, Mode, MsrRange, Outcome, ResolvedVariant, Rules,
};

use crate::limits::MAX_MISTAKES;
use crate::mistake::{Mistake, MistakeKind, Mistakes};
use crate::parse::{self, Includes};
use crate::policy::{Entry, Policy};
use crate::source::{Source, small};

pub(crate) use active::variants;
#[cfg(test)]
pub(crate) use conflict::says;

/// A policy without mistakes, with the rules for each combination of its `[[when]]`s.
#[derive(Clone, Debug)]
pub struct ResolvedPolicy {
    policy: Policy,
    variants: Vec<ResolvedVariant>,
}

impl ResolvedPolicy {
    /// The policy whose entries were resolved.
    #[must_use]
    pub const fn policy(&self) -> &Policy {
        &self.policy
    }

    /// Returns the policy with this mode in place of the mode that its text states.
    #[must_use]
    pub fn in_mode(mut self, mode: Mode) -> Self {
        self.policy.settings.mode = mode;
        self
    }

    /// Returns the policy and its variants: one for each combination of `[[when]]`s that hold
    /// together on some processor. There is at least one variant. If there is a processor on which
    /// no `[[when]]` holds, the variant for that processor comes first.
    #[must_use]
    pub fn into_parts(self) -> (Policy, Vec<ResolvedVariant>) {
        (self.policy, self.variants)
    }
}

/// Reads a policy with all texts that it includes, and resolves it.
///
/// # Errors
/// Returns all mistakes with their places: bad TOML, unknown keys, words and names, includes that
/// cannot be read, entries that overlap and disagree, answers that are impossible.
///
/// A policy beyond a limit is refused unread: [`MAX_BYTES`](crate::MAX_BYTES),
/// [`MAX_TOKENS`](crate::MAX_TOKENS), [`MAX_TABLES`](crate::MAX_TABLES),
/// [`MAX_LINE`](crate::MAX_LINE), [`MAX_ENTRIES`](crate::MAX_ENTRIES),
/// [`MAX_FILES`](crate::MAX_FILES). A text that does not say `policy = 1` has one mistake, which
/// tells nothing of the text except the version that it states.
pub fn parse(
    source: &Source,
    includes: &mut dyn Includes,
) -> Result<ResolvedPolicy, Box<Mistakes>> {
    resolve(parse::read(source, Some(includes)), |_| false)
}

/// Checks one text without the texts that it includes. The text may be meant for being included,
/// so a mistake that another text may mend does not count.
///
/// # Errors
/// Returns the mistakes of the text.
pub(crate) fn check_alone(source: &Source) -> Result<(), Box<Mistakes>> {
    let parsed = parse::read(source, None);
    let has_default = parsed.has_default;
    let may_be_mended = |kind: &MistakeKind| match kind {
        MistakeKind::OverridesNothing(_) | MistakeKind::DeviceNotSetUp { .. } => true,
        MistakeKind::NamesTheLastMsr(_) | MistakeKind::UnknownNeedsAllow => !has_default,
        _ => false,
    };
    resolve(parsed, may_be_mended).map(|_| ())
}

/// Resolves a policy. To the mistakes of the single texts, adds the mistakes that show only when
/// all entries are seen together. `is_excused` returns true for kinds of mistakes that do not count.
fn resolve(
    parsed: parse::Parsed,
    is_excused: impl Fn(&MistakeKind) -> bool,
) -> Result<ResolvedPolicy, Box<Mistakes>> {
    let has_broken_device = parsed.has_broken_device;
    let is_excused = |kind: &MistakeKind| {
        is_excused(kind) || has_broken_device && matches!(kind, MistakeKind::DeviceNotSetUp { .. })
    };
    let mut mistakes = parsed.mistakes;
    mistakes.retain(|mistake: &Mistake| !is_excused(&mistake.kind));
    // If a policy exceeds a limit, some of its entries were not read.
    let is_limit = |mistake: &Mistake| {
        matches!(
            mistake.kind,
            MistakeKind::TooMany { .. } | MistakeKind::TooLong { .. }
        )
    };
    let is_to_be_resolved = !mistakes.iter().any(is_limit) && mistakes.len() < MAX_MISTAKES;
    let policy = parsed.policy.filter(|_| is_to_be_resolved);
    let resolved = policy.map(|policy| {
        let variants = variants::resolve(&policy, &parsed.stated, is_excused, &mut mistakes);
        ResolvedPolicy { policy, variants }
    });
    match resolved {
        Some(resolved) if mistakes.is_empty() => Ok(resolved),
        _ => Err(Box::new(Mistakes::new(parsed.sources, mistakes))),
    }
}

/// Returns the rules of some entries of a policy. The smallest of the entries that contain an MSR
/// decides. Two entries of the same size agree: [`conflict`] has checked that. `lines` has, for
/// each entry, the line in which the entry begins.
fn rules(policy: &Policy, entries: &[EntryId], lines: Arc<[Line]>) -> Rules {
    msrgate_program::resolve(&Active { policy, entries }, lines)
}

/// Returns, for each entry, the line in which the entry begins.
fn lines(policy: &Policy) -> Arc<[Line]> {
    let line = |entry: &Entry| Line {
        file: FileId::new(small(entry.source().number())),
        number: entry.place().line,
    };
    policy.entries().iter().map(line).collect()
}

/// The entries that hold together on some processors.
struct Active<'p> {
    policy: &'p Policy,
    entries: &'p [EntryId],
}

impl Layers for Active<'_> {
    fn ranges(&self, access: Access) -> impl Iterator<Item = (EntryId, MsrRange)> {
        self.entries.iter().flat_map(move |&id| {
            let entry = self.policy.entry(id);
            let speaks = entry.action(access).is_some();
            let ranges = entry.msrs().ranges().iter();
            ranges
                .filter(move |_| speaks)
                .map(move |&range| (id, range))
        })
    }

    /// Returns the rank of an entry: the smaller the entry, the lower its rank.
    fn rank(&self, entry: EntryId) -> u64 {
        self.policy.entry(entry).msrs().count()
    }

    fn outcome(&self, entry: EntryId, access: Access) -> Option<Outcome> {
        let entry = self.policy.entry(entry);
        let action = entry.action(access)?.clone();
        let log = entry.log().unwrap_or(self.policy.settings().log);
        Some(Outcome { action, log })
    }

    fn default(&self) -> Outcome {
        Outcome {
            action: self.policy.default_action().clone(),
            log: self.policy.settings().log,
        }
    }
}

#[cfg(test)]
mod tests;
