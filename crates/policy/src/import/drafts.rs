//! The entries that a reader of a format collects, and the parts of the file that a policy cannot
//! express.

use msrgate_filter::{MsrIndex, X2APIC};
use msrgate_program::{Action, MsrRange, MsrSet, one_line};

use super::draft::{Draft, Gap, Loss, LossKind, Scope};
use super::{Format, Imported, grouped};
use crate::policy::{Log, Mode, Settings, Unknown};

/// The drafts and remarks that a reader of a format collects.
#[derive(Debug)]
pub(super) struct Drafts {
    settings: Settings,
    scope: Scope,
    /// The drafts that were added so far, each for one range.
    entries: Vec<Draft>,
    losses: Vec<Loss>,
    gap: Option<Gap>,
}

impl Drafts {
    /// Returns an empty collection for a policy with this default action.
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

    /// Returns an empty collection for a policy with these settings.
    pub(super) const fn under(settings: Settings) -> Self {
        Self {
            settings,
            scope: Scope::All,
            entries: Vec::new(),
            losses: Vec::new(),
            gap: None,
        }
    }

    /// Sets the accesses that become events, for entries without a `log` of their own.
    pub(super) const fn log(&mut self, log: Log) {
        self.settings.log = log;
    }

    /// Sets the processors on which the policy decides as the file does.
    pub(super) fn holds(&mut self, scope: Scope) {
        self.scope = scope;
    }

    /// Adds a draft of an entry, which must not overlap the drafts that were added before. MSRs
    /// that no entry may name are left out, with a remark.
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
        // The policy's `default` alone decides MSR 0xffffffff (S3.5).
        let last = if last == MsrIndex::MAX && !is_default {
            self.lose(None, "0xffffffff: only `default` decides this MSR (S3.5)");
            MsrIndex::new(u32::MAX - 1)
        } else {
            last
        };
        if last < x2apic_first || first > x2apic_last {
            self.part(draft, MsrRange::new(first, last));
            return;
        }
        // KVM asks no filter about x2APIC registers (S3.1).
        let cut = MsrRange::new(first.max(x2apic_first), last.min(x2apic_last));
        if let Some(cut) = cut {
            let what = format!("{cut}: KVM never filters x2APIC registers (S3.1)");
            self.lose(None, what);
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

    /// Adds a remark about a part of the file that a policy cannot express.
    pub(super) fn lose(&mut self, line: Option<usize>, what: impl Into<String>) {
        self.remark(LossKind::LeftOut, line, &what.into());
    }

    /// Adds a remark about a line that cannot be read. The policy may lack what the line says, so the
    /// file counts as incomplete.
    pub(super) fn skip(&mut self, line: usize, what: impl Into<String>) {
        self.lose(Some(line), what);
        self.lacks(Gap::Skipped);
    }

    /// Adds a remark about a part of the file that the policy has, or that needs no entry.
    pub(super) fn note(&mut self, line: Option<usize>, what: impl Into<String>) {
        self.remark(LossKind::Note, line, &what.into());
    }

    fn remark(&mut self, kind: LossKind, line: Option<usize>, what: &str) {
        let what = one_line(what);
        self.losses.push(Loss { kind, line, what });
    }

    /// Records a sign that a part of the file is missing. The gravest sign is kept.
    pub(super) fn lacks(&mut self, gap: Gap) {
        self.gap = self.gap.max(Some(gap));
    }

    /// Returns all entries in the order of their MSRs. Neighbouring entries with the same content
    /// become one entry, and so do the registers of a group.
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
        self.losses.sort_by_key(|loss| loss.line);
        Imported {
            format,
            settings: self.settings,
            scope: self.scope,
            entries: grouped::grouped(entries),
            losses: self.losses,
            gap: self.gap,
        }
    }
}

fn is_continued(before: &Draft, draft: &Draft) -> bool {
    let last = before.msrs.ranges().last().map(|range| range.last().get());
    last.and_then(|last| last.checked_add(1)) == Some(draft.msrs.first().get())
        && before.says_as_much_as(draft)
}
