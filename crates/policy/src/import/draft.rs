//! Entries that a policy could have, before they have a text.

use std::fmt;

use msrgate_filter::{MsrIndex, X2APIC};

use super::{Format, Imported};
use crate::action::Action;
use crate::msrs::MsrRange;

/// An entry to be.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Draft {
    /// The MSRs.
    pub msrs: MsrRange,
    /// By [`Access`](msrgate_filter::Access); `None` where the file says nothing of a direction.
    pub actions: [Option<Action>; 2],
    /// What the file says of it, for a comment.
    pub why: Option<String>,
}

/// Something in a file that a policy cannot say.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Unsaid {
    /// Where it stands, counted from 1; `None` for the whole file, and in JSON.
    pub line: Option<usize>,
    /// What it is, and what holds instead.
    pub what: String,
}

impl fmt::Display for Unsaid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            Some(line) => write!(f, "line {line}: {}", self.what),
            None => f.write_str(&self.what),
        }
    }
}

/// What a reader of a format collects.
#[derive(Debug)]
pub(super) struct Drafts {
    default: Action,
    entries: Vec<Draft>,
    unsaid: Vec<Unsaid>,
}

impl Drafts {
    /// Nothing yet, under this default.
    pub(super) const fn new(default: Action) -> Self {
        Self {
            default,
            entries: Vec::new(),
            unsaid: Vec::new(),
        }
    }

    /// Another entry, apart from all others. What no entry may speak of is left out and remarked.
    pub(super) fn say(&mut self, draft: &Draft) {
        let (first, last) = (draft.msrs.first(), draft.msrs.last());
        let (x2apic_first, x2apic_last) = (*X2APIC.start(), *X2APIC.end());
        let is_default = draft
            .actions
            .iter()
            .flatten()
            .all(|action| *action == self.default);
        // S3.5
        let last = if last == MsrIndex::MAX && !is_default {
            self.unsaid(None, "0xffffffff: only `default` reaches it (S3.5)");
            MsrIndex::new(u32::MAX - 1)
        } else {
            last
        };
        if last < x2apic_first || first > x2apic_last {
            self.part(draft, MsrRange::new(first, last));
            return;
        }
        // S3.1
        let cut = MsrRange::new(first.max(x2apic_first), last.min(x2apic_last));
        if let Some(cut) = cut {
            let what = format!("{cut}: x2APIC registers, which KVM never filters (S3.1)");
            self.unsaid(None, what);
        }
        let below = MsrIndex::new(x2apic_first.get() - 1);
        let above = MsrIndex::new(x2apic_last.get() + 1);
        self.part(draft, MsrRange::new(first, below));
        self.part(draft, MsrRange::new(above, last));
    }

    fn part(&mut self, draft: &Draft, msrs: Option<MsrRange>) {
        if let Some(msrs) = msrs {
            self.entries.push(Draft {
                msrs,
                ..draft.clone()
            });
        }
    }

    /// Something that cannot be said.
    pub(super) fn unsaid(&mut self, line: Option<usize>, what: impl Into<String>) {
        self.unsaid.push(Unsaid {
            line,
            what: what.into(),
        });
    }

    /// Everything in order. Neighbours of which the same is said become one.
    pub(super) fn imported(mut self, format: Format) -> Imported {
        self.entries.sort_by_key(|draft| draft.msrs.first());
        let mut entries: Vec<Draft> = Vec::new();
        for draft in self.entries {
            match entries.last_mut() {
                Some(before) if is_continued(before, &draft) => {
                    let joined = MsrRange::new(before.msrs.first(), draft.msrs.last());
                    before.msrs = joined.unwrap_or(before.msrs);
                }
                _ => entries.push(draft),
            }
        }
        self.unsaid.sort_by_key(|unsaid| unsaid.line);
        Imported {
            format,
            default: self.default,
            entries,
            unsaid: self.unsaid,
        }
    }
}

fn is_continued(before: &Draft, draft: &Draft) -> bool {
    before.msrs.last().get().checked_add(1) == Some(draft.msrs.first().get())
        && before.actions == draft.actions
        && before.why == draft.why
}
