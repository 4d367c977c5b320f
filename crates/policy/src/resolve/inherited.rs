//! The decisions of each text for the MSRs of the text's final entries that inherit.
//!
//! A text decides together with its includes. Many texts may have the same includes, so one sweep
//! over the MSRs decides for all texts: it visits an entry once, with the set of texts that contain
//! or include the entry.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use msrgate_filter::{Access, X2APIC};
use msrgate_program::{Action, EntryId, MsrRange, MsrSet};

use crate::policy::{Policy, SourceId, SourceSet};

/// The MSRs that one entry decides in some texts.
pub(super) struct Decided {
    pub(super) msrs: MsrRange,
    /// The entry that decides about these MSRs. `None`: the `default` decides.
    pub(super) by: Option<EntryId>,
    pub(super) texts: SourceSet,
}

/// The promised limits that come from the decisions of texts.
pub(super) trait Limits {
    /// Returns the action of an entry, or of `default`.
    fn limit(&self, by: Option<EntryId>) -> &Action;

    /// Returns true if audit mode lifts the limit, because it lets refused accesses through.
    fn is_lifted(&self, limit: &Action) -> bool;

    /// Removes the decisions at one MSR that a policy cannot break without breaking a kept
    /// decision, too. The removed decisions are those that are not the strictest, and the
    /// repetitions by later texts. Of different decisions that are not masks, two are kept. A
    /// decision that audit mode lifts is kept once for each text; `told` has the texts for which it
    /// was kept.
    fn keep_strictest(&self, all: &mut Vec<(Option<EntryId>, SourceSet)>, told: &mut SourceSet) {
        if all.len() <= 2 {
            return;
        }
        let strictest = all.iter().map(|(by, _)| self.limit(*by).reach()).min();
        all.sort_by_key(|(_, texts)| texts.first());
        let mut kept: Vec<&Action> = Vec::new();
        let mut others = 0;
        all.retain(|&(by, texts)| {
            let limit = self.limit(by);
            let is_untold = !texts.without(*told).is_empty() && self.is_lifted(limit);
            if is_untold {
                told.extend(texts);
            }
            let is_mask = matches!(limit, Action::Mask(_));
            let is_kept = Some(limit.reach()) == strictest
                && (is_mask || others < 2)
                && !kept.contains(&limit);
            if is_kept {
                kept.push(limit);
                others += usize::from(!is_mask);
            }
            is_kept || is_untold
        });
    }
}

/// The final entries that say `inherit` for one direction, by text, with the data needed to find
/// what they promise.
pub(super) struct Inheriting<'p> {
    policy: &'p Policy,
    access: Access,
    by_text: BTreeMap<SourceId, MsrSet>,
    /// For each text, the texts of `by_text` in which its entries count: the text itself, and the
    /// texts that include it.
    viewers: Vec<SourceSet>,
}

impl<'p> Inheriting<'p> {
    pub(super) fn new(
        policy: &'p Policy,
        access: Access,
        ranges: BTreeMap<SourceId, Vec<MsrRange>>,
    ) -> Self {
        let x2apic = MsrSet::from(MsrRange::between(*X2APIC.start(), *X2APIC.end()));
        // KVM alone decides about x2APIC registers.
        let msrs = |ranges| MsrSet::new(ranges)?.without(&x2apic);
        let by_text = ranges.into_iter();
        let by_text = by_text.filter_map(|(text, ranges)| Some((text, msrs(ranges)?)));
        let by_text: BTreeMap<_, _> = by_text.collect();
        let mut viewers = vec![SourceSet::default(); policy.below.len()];
        for &text in by_text.keys() {
            for (number, viewers) in viewers.iter_mut().enumerate() {
                let source = SourceId::new(number);
                if source == text || policy.below[text.number()].contains(source) {
                    viewers.insert(text);
                }
            }
        }
        Self {
            policy,
            access,
            by_text,
            viewers,
        }
    }

    /// Returns the decisions of texts that a policy must not loosen, in the order of their MSRs.
    /// `holds` tells if an entry holds, overridden or not; `overriding` returns the entries that
    /// hold and override a given entry; `has_default` tells if a text has a `default`.
    pub(super) fn decided<O: Iterator<Item = EntryId>>(
        &self,
        holds: impl Fn(EntryId) -> bool,
        overriding: impl Fn(EntryId) -> O,
        has_default: impl Fn(SourceId) -> bool,
        limits: &impl Limits,
    ) -> Vec<Decided> {
        let all = self.by_text.values().flat_map(MsrSet::ranges).copied();
        let Some(all) = MsrSet::new(all) else {
            return Vec::new();
        };
        let mut sweep = Sweep::default();
        for (number, viewers) in self.viewers.iter().enumerate() {
            if has_default(SourceId::new(number)) {
                sweep.with_default.extend(*viewers);
            }
        }
        let mut edges = Vec::new();
        let mut add = |msrs: &MsrSet, one: Edge| {
            for range in msrs.ranges() {
                edges.push((u64::from(range.first().get()), true, one));
                edges.push((u64::from(range.last().get()) + 1, false, one));
            }
        };
        for (&text, msrs) in &self.by_text {
            add(msrs, Edge::Text(text));
        }
        for id in self.policy.ids().filter(|id| holds(*id)) {
            let entry = self.policy.entry(id);
            if entry.action(self.access).is_none() || !entry.msrs.overlaps(&all) {
                continue;
            }
            let mut viewers = self.viewers[entry.source().number()];
            for by in overriding(id) {
                let source = self.policy.entry(by).source();
                viewers = viewers.without(self.viewers[source.number()]);
            }
            if !viewers.is_empty() {
                let class = sweep.class(viewers);
                add(&entry.msrs, Edge::Entry(entry.msrs.count(), id, class));
            }
        }
        edges.sort_unstable();
        for (at, starts, edge) in edges {
            sweep.step(at, limits);
            sweep.turn(edge, starts);
        }
        sweep.step(1 << 32, limits);
        sweep.finish()
    }
}

/// The item that begins or ends at an MSR.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Edge {
    /// The MSRs of a text's final entries that say `inherit`.
    Text(SourceId),
    /// The MSRs of an entry: the number of the MSRs, the entry, and the class of texts that contain
    /// or include the entry.
    Entry(u64, EntryId, usize),
}

/// The number of an entry's MSRs, and the entry. The entry with the fewest MSRs decides.
type Ranked = (u64, EntryId);

/// A walk over the MSRs from 0 up.
#[derive(Default)]
struct Sweep {
    at: u64,
    /// The texts that have a final entry with `inherit` for the current MSR.
    texts: SourceSet,
    with_default: SourceSet,
    /// The classes of entries. A class is the set of texts that contain or include its entries.
    classes: Vec<SourceSet>,
    numbers: HashMap<SourceSet, usize>,
    /// The entries that contain the current MSR, by class.
    open: Vec<BTreeSet<Ranked>>,
    /// Of each class, the entry with the fewest MSRs that contains the current MSR.
    heads: BTreeSet<(Ranked, usize)>,
    /// The decisions at the previous MSR: the texts for which each holds, and the MSR since which
    /// it holds.
    current: BTreeMap<Option<EntryId>, (SourceSet, u64)>,
    decided: Vec<Decided>,
    /// The texts for which a decision that audit mode lifts was kept.
    told: SourceSet,
}

impl Sweep {
    fn class(&mut self, viewers: SourceSet) -> usize {
        let next = self.classes.len();
        let class = *self.numbers.entry(viewers).or_insert(next);
        if class == next {
            self.classes.push(viewers);
            self.open.push(BTreeSet::new());
        }
        class
    }

    /// Records the decisions from the current MSR to below `to`.
    fn step(&mut self, to: u64, limits: &impl Limits) {
        if to == self.at {
            return;
        }
        let mut now = Vec::new();
        let mut rest = self.texts;
        for &((_, id), class) in &self.heads {
            if rest.is_empty() {
                break;
            }
            let texts = rest.shared(self.classes[class]);
            if !texts.is_empty() {
                now.push((Some(id), texts));
                rest = rest.without(texts);
            }
        }
        let by_default = rest.shared(self.with_default);
        if !by_default.is_empty() {
            now.push((None, by_default));
        }
        limits.keep_strictest(&mut now, &mut self.told);
        let now: BTreeMap<_, _> = now.into_iter().collect();
        let at = self.at;
        self.end(|by, texts| now.get(&by) != Some(&texts));
        for (by, texts) in now {
            self.current.entry(by).or_insert((texts, at));
        }
        self.at = to;
    }

    /// Ends, before the current MSR, the decisions for which `is_over` returns true.
    fn end(&mut self, is_over: impl Fn(Option<EntryId>, SourceSet) -> bool) {
        let (at, decided) = (self.at, &mut self.decided);
        self.current.retain(|&by, &mut (texts, since)| {
            let is_over = is_over(by, texts);
            if is_over && let Some(msrs) = MsrRange::below(since, at) {
                decided.push(Decided { msrs, by, texts });
            }
            !is_over
        });
    }

    fn turn(&mut self, edge: Edge, starts: bool) {
        match edge {
            Edge::Text(text) if starts => self.texts.insert(text),
            Edge::Text(text) => self.texts = self.texts.without(SourceSet::of(text)),
            Edge::Entry(count, id, class) => {
                let open = &mut self.open[class];
                if let Some(&head) = open.first() {
                    self.heads.remove(&(head, class));
                }
                if starts {
                    open.insert((count, id));
                } else {
                    open.remove(&(count, id));
                }
                self.heads.extend(open.first().map(|&head| (head, class)));
            }
        }
    }

    fn finish(mut self) -> Vec<Decided> {
        self.end(|_, _| true);
        self.decided.sort_by_key(|decided| decided.msrs.first());
        self.decided
    }
}
