//! From a policy's entries to the rules that hold on each kind of processor, or to all mistakes at once.

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

/// A policy without mistakes, with the rules that hold by its `[[when]]`s.
#[derive(Clone, Debug)]
pub struct ResolvedPolicy {
    policy: Policy,
    variants: Vec<ResolvedVariant>,
}

impl ResolvedPolicy {
    /// The policy.
    #[must_use]
    pub const fn policy(&self) -> &Policy {
        &self.policy
    }

    /// The same policy in this mode, whatever its text says.
    #[must_use]
    pub fn in_mode(mut self, mode: Mode) -> Self {
        self.policy.settings.mode = mode;
        self
    }

    /// The policy, and a variant for each way in which the `[[when]]`s hold on some processor; at
    /// least one. The variant in which none holds, if there is such a processor, is the first.
    #[must_use]
    pub fn into_parts(self) -> (Policy, Vec<ResolvedVariant>) {
        (self.policy, self.variants)
    }
}

/// Reads a policy with all it includes, and resolves it.
///
/// # Errors
/// All mistakes, with their places: bad TOML, unknown keys, words and names, includes that cannot
/// be read, entries that overlap and disagree, answers that cannot be given. Texts over
/// [`MAX_BYTES`](crate::MAX_BYTES), [`MAX_TOKENS`](crate::MAX_TOKENS) or
/// [`MAX_TABLES`](crate::MAX_TABLES), with a line over [`MAX_LINE`](crate::MAX_LINE), with more than
/// [`MAX_ENTRIES`](crate::MAX_ENTRIES), or in more than [`MAX_FILES`](crate::MAX_FILES) are refused
/// unread. A text that does not say `policy = 1` has one mistake, which tells nothing of it but the number that it
/// says instead.
pub fn parse(
    source: &Source,
    includes: &mut dyn Includes,
) -> Result<ResolvedPolicy, Box<Mistakes>> {
    resolve(parse::read(source, Some(includes)), |_| false)
}

/// Looks for mistakes in one text, for which nothing is included, and which may be meant for being
/// included: what another text may mend is none.
///
/// # Errors
/// Its mistakes.
pub(crate) fn check_alone(source: &Source) -> Result<(), Box<Mistakes>> {
    let parsed = parse::read(source, None);
    let has_default = parsed.has_default;
    let may_be_mended = |wrong: &MistakeKind| match wrong {
        MistakeKind::OverridesNothing(_) | MistakeKind::DeviceNotSetUp { .. } => true,
        MistakeKind::NamesTheLastMsr(_) | MistakeKind::UnknownNeedsAllow => !has_default,
        _ => false,
    };
    resolve(parsed, may_be_mended).map(|_| ())
}

/// Resolves a policy, and adds what is wrong with its entries together to the mistakes of its texts;
/// `these` are no mistakes.
fn resolve(
    parsed: parse::Parsed,
    these: impl Fn(&MistakeKind) -> bool,
) -> Result<ResolvedPolicy, Box<Mistakes>> {
    let has_broken_device = parsed.has_broken_device;
    let these = |wrong: &MistakeKind| {
        these(wrong) || has_broken_device && matches!(wrong, MistakeKind::DeviceNotSetUp { .. })
    };
    let mut mistakes = parsed.mistakes;
    mistakes.retain(|mistake: &Mistake| !these(&mistake.wrong));
    // Of a policy that is beyond a limit, not all entries are there.
    let is_limit = |mistake: &Mistake| {
        matches!(
            mistake.wrong,
            MistakeKind::TooMany { .. } | MistakeKind::TooLong { .. }
        )
    };
    let is_to_be_resolved = !mistakes.iter().any(is_limit) && mistakes.len() < MAX_MISTAKES;
    let policy = parsed.policy.filter(|_| is_to_be_resolved);
    let resolved = policy.map(|policy| {
        let variants = variants::resolve(&policy, &parsed.stated, these, &mut mistakes);
        ResolvedPolicy { policy, variants }
    });
    match resolved {
        Some(resolved) if mistakes.is_empty() => Ok(resolved),
        _ => Err(Box::new(Mistakes::new(parsed.sources, mistakes))),
    }
}

/// The rules of some entries of a policy: of those that contain an MSR, the smallest decides. Where two of
/// the same size do, they agree: [`conflict`] has seen to it. `lines` says where each entry stands.
fn rules(policy: &Policy, entries: &[EntryId], lines: Arc<[Line]>) -> Rules {
    msrgate_program::resolve(&Active { policy, entries }, lines)
}

/// The line that each entry stands on.
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

    /// The smaller an entry, the lower its rank.
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
