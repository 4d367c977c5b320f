//! Entries that a policy could have, before they have a text.

use std::fmt;

use msrgate_filter::{MsrIndex, X2APIC};
use msrgate_program::{Action, MsrRange, MsrSet, one_line};

use super::{Format, Imported, grouped};
use crate::policy::{Log, Mode, Settings, Unknown};

/// An entry to be.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Draft {
    /// The MSRs: one range, or a group.
    pub msrs: MsrSet,
    /// By [`Access`](msrgate_filter::Access); `None` where the file says nothing of a direction.
    pub actions: [Option<Action>; 2],
    /// Which of these accesses become events, where that is not what the settings say.
    pub log: Option<Log>,
    /// What the file says of it, for a comment.
    pub why: Option<String>,
}

impl Draft {
    /// What is said of one range, and no more.
    pub(super) fn new(msrs: MsrRange, actions: [Option<Action>; 2]) -> Self {
        Self {
            msrs: msrs.into(),
            actions,
            log: None,
            why: None,
        }
    }

    /// Whether it says the same, of whatever MSRs.
    pub(super) fn says_as_much_as(&self, other: &Self) -> bool {
        self.actions == other.actions && self.log == other.log && self.why == other.why
    }
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
    settings: Settings,
    /// Of one range each.
    entries: Vec<Draft>,
    unsaid: Vec<Unsaid>,
}

impl Drafts {
    /// Nothing yet, under this default.
    pub(super) fn new(default: Action) -> Self {
        Self::under(Settings {
            name: None,
            mode: Mode::default(),
            default,
            unknown: Unknown::default(),
            log: Log::default(),
            accept: Vec::new(),
            microcode: None,
        })
    }

    /// Nothing yet, under these settings.
    pub(super) const fn under(settings: Settings) -> Self {
        Self {
            settings,
            entries: Vec::new(),
            unsaid: Vec::new(),
        }
    }

    /// What becomes an event, where no entry says otherwise.
    pub(super) const fn log(&mut self, log: Log) {
        self.settings.log = log;
    }

    /// Another entry, apart from all others. What no entry may speak of is left out and remarked.
    pub(super) fn say(&mut self, draft: &Draft) {
        for &range in draft.msrs.ranges() {
            self.say_range(draft, range);
        }
    }

    fn say_range(&mut self, draft: &Draft, range: MsrRange) {
        let (first, last) = (range.first(), range.last());
        let (x2apic_first, x2apic_last) = (*X2APIC.start(), *X2APIC.end());
        let is_default = draft
            .actions
            .iter()
            .flatten()
            .all(|action| *action == self.settings.default);
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
                msrs: msrs.into(),
                ..draft.clone()
            });
        }
    }

    /// Something that cannot be said.
    pub(super) fn unsaid(&mut self, line: Option<usize>, what: impl Into<String>) {
        self.unsaid.push(Unsaid {
            line,
            what: one_line(&what.into()),
        });
    }

    /// Everything in order. Neighbours of which the same is said become one, and so do the registers
    /// of a group.
    pub(super) fn imported(mut self, format: Format) -> Imported {
        self.entries.sort_by_key(|draft| draft.msrs.first());
        let mut entries: Vec<Draft> = Vec::new();
        for draft in self.entries {
            match entries.last_mut() {
                Some(before) if is_continued(before, &draft) => {
                    let ranges = before.msrs.ranges().iter().chain(draft.msrs.ranges());
                    let joined = MsrSet::new(ranges.copied());
                    before.msrs = joined.unwrap_or(draft.msrs);
                }
                _ => entries.push(draft),
            }
        }
        self.unsaid.sort_by_key(|unsaid| unsaid.line);
        Imported {
            format,
            settings: self.settings,
            entries: grouped::grouped(entries),
            unsaid: self.unsaid,
        }
    }
}

fn is_continued(before: &Draft, draft: &Draft) -> bool {
    let last = before.msrs.ranges().last().map(|range| range.last().get());
    last.and_then(|last| last.checked_add(1)) == Some(draft.msrs.first().get())
        && before.says_as_much_as(draft)
}
