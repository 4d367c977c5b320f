//! Final entries. On each processor, a final entry promises that no access gets an action looser
//! than the entry's. This module finds the entries that break such a promise.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use msrgate_filter::{Access, MsrIndex};
use msrgate_program::{
    Action, Comparison, DecidedBy, EntryId, MsrRange, MsrSet, Rule, Rules, shown_name,
};

use super::active::Active;
use super::conflict;
use super::inherited::{Decided, Inheriting, Limits};
use super::unsound::unsound;
use crate::limits::MAX_MISTAKES;
use crate::mistake::{Label, Mistake, MistakeKind};
use crate::overrides::Overrides;
use crate::parse::Stated;
use crate::policy::{Entry, Firmness, Mode, OWN, Policy, SourceId, SourceSet};
use crate::remedy::{Limit, Remedies};
use crate::source::quoted;

/// The final entries of a policy, with the data needed to find entries that break their promises.
pub(super) struct Finals<'p> {
    policy: &'p Policy,
    stated: &'p [Stated],
    overrides: &'p Overrides,
    ids: Vec<EntryId>,
}

/// A promise of a final entry: the loosest permitted action for some MSRs in one direction.
struct Promise {
    msrs: MsrRange,
    limit: Action,
    by: By,
    /// The entry whose action is the limit. `None`: the limit is the policy's `default`.
    source: Option<EntryId>,
}

/// The final entries that make a promise.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum By {
    /// A final entry that has an action.
    Entry(EntryId),
    /// The final entries of this text that say `inherit`.
    Inheriting(SourceId),
}

impl By {
    /// Returns the text that contains the final entries.
    fn text(self, policy: &Policy) -> SourceId {
        match self {
            Self::Entry(id) => policy.entry(id).source(),
            Self::Inheriting(text) => text,
        }
    }
}

impl<'p> Finals<'p> {
    pub(super) fn new(policy: &'p Policy, stated: &'p [Stated], overrides: &'p Overrides) -> Self {
        let is_final = |id: &EntryId| policy.entry(*id).firmness == Firmness::Final;
        Self {
            policy,
            stated,
            overrides,
            ids: policy.ids().filter(is_final).collect(),
        }
    }

    /// Returns a mistake for each broken promise of the final entries that hold on these
    /// processors. The promise of a final entry holds even if an override replaces the entry.
    pub(super) fn broken(&self, active: &Active, table: &Rules) -> Vec<Mistake> {
        let promises = Access::ALL.map(|access| self.promises(active, access));
        let mut mistakes = Vec::new();
        let mut found = Vec::new();
        let mut lifted = BTreeSet::new();
        for (access, promises) in Access::ALL.into_iter().zip(&promises) {
            for promise in promises {
                mistakes.extend(self.lifted_by_audit(active, promise, access, &mut lifted));
            }
            found.extend(self.loosened(active, table, promises, access));
        }
        // A policy's author should get one piece of advice for an entry that breaks several
        // promises, in one direction or in both. So the strictest limit for the entry is found
        // first.
        let mut limits = HashMap::<(&MsrSet, Access), &Action>::new();
        for one in &found {
            let limit = limits
                .entry((&self.policy.entry(one.blamed).msrs, one.access))
                .or_insert(&one.promise.limit);
            if one.promise.limit.reach() < limit.reach() {
                *limit = &one.promise.limit;
            }
        }
        if !found.is_empty() {
            let remedies = Remedies::new(self.policy, self.overrides);
            let each = found.iter();
            let mistake = |one| self.mistake(active, one, &limits, &remedies);
            mistakes.extend(each.filter_map(mistake));
        }
        mistakes
    }

    fn active(&self, active: &Active) -> impl Iterator<Item = (EntryId, &'p Entry)> {
        let policy = self.policy;
        let finals = self.ids.iter().map(|&id| (id, policy.entry(id)));
        finals.filter(|(_, entry)| active.has(entry))
    }

    fn promises(&self, active: &Active, access: Access) -> Vec<Promise> {
        let mut promises = Vec::new();
        let mut inheriting = BTreeMap::<SourceId, Vec<MsrRange>>::new();
        for (id, fixed) in self.active(active) {
            let ranges = fixed.msrs.ranges().iter().copied();
            match fixed.action(access) {
                Some(limit) => promises.extend(ranges.map(|msrs| Promise {
                    msrs,
                    limit: limit.clone(),
                    by: By::Entry(id),
                    source: Some(id),
                })),
                None => inheriting.entry(fixed.source()).or_default().extend(ranges),
            }
        }
        promises.extend(self.inherited(active, access, inheriting));
        // A promise with the limit `allow` cannot be broken, because no action is looser.
        promises.retain(|promise| promise.limit != Action::Allow);
        promises
    }

    /// Returns the promises of final entries with `inherit`. Such an entry promises the decision
    /// that its own text makes together with the text's includes. If the same entry decides in
    /// several texts, only the promise of the first text is returned. If audit mode lifts the
    /// promise, each text has a promise of its own.
    fn inherited(
        &self,
        active: &Active,
        access: Access,
        ranges: BTreeMap<SourceId, Vec<MsrRange>>,
    ) -> Vec<Promise> {
        if ranges.is_empty() {
            return Vec::new();
        }
        let inheriting = Inheriting::new(self.policy, access, ranges);
        let decided = inheriting.decided(
            |id| active.has(self.policy.entry(id)),
            |id| self.overriding(active, id),
            |text| {
                let stated = self.stated.get(text.number());
                stated.is_some_and(|stated| stated.has_default)
            },
            &LimitsOf {
                finals: self,
                access,
            },
        );
        let mut told = SourceSet::default();
        let mut promises = Vec::new();
        for Decided { msrs, by, texts } in decided {
            let said = by.and_then(|id| self.policy.entry(id).action(access));
            let limit = said.unwrap_or(self.policy.default_action());
            let is_lifted = self.is_lifted(limit);
            let mut is_first = true;
            for text in texts.iter() {
                let is_new = is_lifted && !told.contains(text);
                if is_new {
                    told.insert(text);
                }
                if std::mem::take(&mut is_first) || is_new {
                    promises.push(Promise {
                        msrs,
                        limit: limit.clone(),
                        by: By::Inheriting(text),
                        source: by,
                    });
                }
            }
        }
        promises.sort_by_key(|promise| (promise.by.text(self.policy), promise.msrs.first()));
        promises
    }

    /// Returns the entries that override this entry on these processors: one for each text and
    /// `[[when]]`.
    fn overriding(&self, active: &Active, id: EntryId) -> impl Iterator<Item = EntryId> {
        let all = self.overrides.of_entry(id);
        all.filter(|&by| active.has(self.policy.entry(by)))
    }

    /// Returns the final entry that forbids looser actions for this MSR: the entry that `by` holds,
    /// or, in the text that `by` holds, an entry that contains the MSR and says `inherit`.
    fn fixed(&self, active: &Active, by: By, index: MsrIndex, access: Access) -> Option<&'p Entry> {
        match by {
            By::Entry(id) => Some(self.policy.entry(id)),
            By::Inheriting(text) => {
                let mut finals = self.active(active).map(|(_, fixed)| fixed);
                finals.find(|fixed| {
                    fixed.source() == text
                        && fixed.action(access).is_none()
                        && fixed.msrs.contains(index)
                })
            }
        }
    }

    /// Returns true if the policy is in audit mode, and therefore lets accesses through that this
    /// limit refuses.
    fn is_lifted(&self, limit: &Action) -> bool {
        let stated = self.stated.first().and_then(|stated| stated.mode);
        // A limit with forwarded writes is lifted, too: in audit mode, a nested guest makes such a
        // write itself, without the gate.
        stated.is_some_and(|(mode, _)| mode == Mode::Audit)
            && (limit.refuses() || limit.refuses_some() || limit.needs_forwarding())
    }

    /// Returns a mistake if the policy's audit mode lifts the refusals of this promise, once for
    /// each text. A text that is in audit mode itself has no such mistake.
    fn lifted_by_audit(
        &self,
        active: &Active,
        promise: &Promise,
        access: Access,
        lifted: &mut BTreeSet<SourceId>,
    ) -> Option<Mistake> {
        let (_, at) = self.stated.first()?.mode?;
        if !self.is_lifted(&promise.limit) {
            return None;
        }
        let text = promise.by.text(self.policy);
        let stated = self.stated.get(text.number())?;
        let is_audited = matches!(stated.mode, Some((Mode::Audit, _)));
        if is_audited || !lifted.insert(text) {
            return None;
        }
        let fixed = self.fixed(active, promise.by, promise.msrs.first(), access)?;
        Some(Mistake {
            kind: MistakeKind::LiftedByAudit {
                fixed: quoted(&fixed.key),
                file: shown_name(self.policy.text(text).name()),
            },
            places: vec![
                Label::bare(at),
                Label::saying(fixed.at, format!("final: {}", conflict::says(fixed))),
            ],
        })
    }

    /// Returns the broken promises. The sweep visits the promises by their edges, and compares the
    /// strictest promise that holds at an MSR with the decision, so the time is *n* log *n*.
    fn loosened<'f>(
        &self,
        active: &Active,
        table: &Rules,
        promises: &'f [Promise],
        access: Access,
    ) -> Vec<Loosening<'f>> {
        let mut open = Open::default();
        let mut seen = HashSet::new();
        let mut found = Vec::new();
        let edges = edges(promises);
        for (number, &(at, ref edge)) in edges.iter().enumerate() {
            match *edge {
                Edge::End(promise) => open.remove(promise, &promises[promise].limit),
                Edge::Start(promise) => open.insert(promise, &promises[promise].limit),
            }
            let next = edges.get(number + 1).map_or(at, |&(next, _)| next);
            let Some(msrs) = MsrRange::below(at, next).filter(|_| !open.is_empty()) else {
                continue;
            };
            for segment in table.within(msrs, access) {
                // An action that is not possible for the MSR is a mistake of its own.
                if segment.by == DecidedBy::Kvm || unsound(self.policy, segment, access).is_some() {
                    continue;
                }
                let broken = open.broken_by(segment.action).map(|one| &promises[one]);
                let Some((promise, shared)) = broken.zip(segment.msrs.shared(msrs)) else {
                    continue;
                };
                let blamed = self.blamed(active, promise, segment, access);
                found.extend(
                    blamed
                        .filter(|&id| seen.insert((id, promise.by)))
                        .map(|blamed| Loosening {
                            blamed,
                            promise,
                            index: shared.first(),
                            access,
                            by: segment.by,
                        }),
                );
                if found.len() >= MAX_MISTAKES {
                    return found;
                }
            }
        }
        found
    }

    /// Returns the entry that breaks a promise. If the MSRs of the deciding entry lie within the
    /// MSRs of the entry that sets the limit, the deciding entry breaks the promise. Otherwise an
    /// override of the entry that sets the limit breaks the promise, preferably an override that
    /// inherits. If there is no override, the deciding entry breaks it.
    fn blamed(
        &self,
        active: &Active,
        promise: &Promise,
        segment: Rule<'_>,
        access: Access,
    ) -> Option<EntryId> {
        let decides = match segment.by {
            DecidedBy::Entry(id) => Some(id),
            DecidedBy::Default | DecidedBy::Kvm => None,
        };
        let Some(source) = promise.source else {
            return decides;
        };
        let msrs = &self.policy.entry(source).msrs;
        if decides.is_some_and(|id| self.policy.entry(id).msrs.is_within(msrs)) {
            return decides;
        }
        let is_last = |by: &EntryId| self.overriding(active, *by).next().is_none();
        let is_silent = |by: &EntryId| self.policy.entry(*by).action(access).is_none();
        let taken = self
            .overriding(active, source)
            .max_by_key(|by| (is_silent(by), is_last(by)));
        taken.or(decides)
    }

    fn mistake<'f>(
        &'f self,
        active: &Active,
        loosening: &Loosening<'_>,
        limits: &HashMap<(&MsrSet, Access), &'f Action>,
        remedies: &Remedies<'f>,
    ) -> Option<Mistake> {
        let &Loosening {
            blamed,
            promise,
            index,
            access,
            by,
        } = loosening;
        let fixed = self.fixed(active, promise.by, index, access)?;
        let inherits = match promise.by {
            By::Entry(_) => String::new(),
            By::Inheriting(_) => format!(
                "; in the file of the `final` entry the action for {access}s is {}",
                promise.limit
            ),
        };
        let fixed_says = format!("final: {}{inherits}", conflict::says(fixed));
        let entry = self.policy.entry(blamed);
        let mut places = vec![
            Label::saying(entry.at, conflict::says(entry)),
            Label::saying(fixed.at, fixed_says),
        ];
        let decides = match by {
            DecidedBy::Entry(id) if id == blamed => None,
            DecidedBy::Entry(id) => {
                let decider = self.policy.entry(id);
                let says = format!("decides instead: {}", conflict::says(decider));
                places.push(Label::saying(decider.at, says));
                Some(quoted(&decider.key))
            }
            DecidedBy::Default | DecidedBy::Kvm => {
                Some(format!("default = {}", self.policy.default_action()))
            }
        };
        // The author of the policy can edit its own entry, but has to override an included entry.
        let help = if entry.source() == OWN {
            "delete the entry, or give it the actions of the final entry".to_owned()
        } else {
            let limit = |access| limits.get(&(&entry.msrs, access)).copied();
            let limits = Access::ALL.map(|access| limit(access).map(Limit::Loosened));
            let remedy = remedies.against(entry, &[remedies.base(entry, fixed)], limits);
            format!("{remedy}; this replaces the included entry")
        };
        Some(Mistake {
            kind: MistakeKind::Loosened {
                key: quoted(&entry.key),
                fixed: quoted(&fixed.key),
                index,
                access,
                decides,
                help,
            },
            places,
        })
    }
}

/// The promised limits in one direction, for reads or for writes. Each limit is the action of an
/// entry, or the default action.
struct LimitsOf<'f, 'p> {
    finals: &'f Finals<'p>,
    access: Access,
}

impl Limits for LimitsOf<'_, '_> {
    fn limit(&self, by: Option<EntryId>) -> &Action {
        let policy = self.finals.policy;
        let said = by.and_then(|id| policy.entry(id).action(self.access));
        said.unwrap_or(policy.default_action())
    }

    fn is_lifted(&self, limit: &Action) -> bool {
        self.finals.is_lifted(limit)
    }
}

/// An entry that breaks a final entry's promise, at one MSR.
struct Loosening<'f> {
    /// The entry that breaks the promise.
    blamed: EntryId,
    promise: &'f Promise,
    index: MsrIndex,
    access: Access,
    /// The part of the policy that decides at the MSR.
    by: DecidedBy,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Edge {
    End(usize),
    Start(usize),
}

/// Returns the starts and the ends of promises. An end is one past the promise's last MSR.
fn edges(promises: &[Promise]) -> Vec<(u64, Edge)> {
    let of = |(number, promise): (usize, &Promise)| {
        let (first, last) = (promise.msrs.first().get(), promise.msrs.last().get());
        [
            (first.into(), Edge::Start(number)),
            (u64::from(last) + 1, Edge::End(number)),
        ]
    };
    let mut edges: Vec<_> = promises.iter().enumerate().flat_map(of).collect();
    edges.sort_unstable();
    edges
}

/// The promises of final entries that hold at one MSR, sorted by their limits, the strictest first.
#[derive(Default)]
struct Open<'p> {
    classes: HashMap<&'p Action, usize>,
    /// The promises, by the reach of their limit ([`Action::reach`]) and the class of their limit.
    /// Equal limits have the same class.
    by_limit: BTreeMap<(u8, usize), (&'p Action, BTreeSet<usize>)>,
}

impl<'p> Open<'p> {
    fn is_empty(&self) -> bool {
        self.by_limit.is_empty()
    }

    fn insert(&mut self, promise: usize, limit: &'p Action) {
        let next = self.classes.len();
        let class = *self.classes.entry(limit).or_insert(next);
        let (_, promises) = self
            .by_limit
            .entry((limit.reach(), class))
            .or_insert_with(|| (limit, BTreeSet::new()));
        promises.insert(promise);
    }

    fn remove(&mut self, promise: usize, limit: &'p Action) {
        let Some(&class) = self.classes.get(limit) else {
            return;
        };
        let place = (limit.reach(), class);
        if let Some((_, promises)) = self.by_limit.get_mut(&place) {
            promises.remove(&promise);
            if promises.is_empty() {
                self.by_limit.remove(&place);
            }
        }
    }

    /// Returns a promise that this action breaks. An action breaks promises whose limit has a lower
    /// [`Action::reach`], and keeps promises whose limit has a higher one. Among limits with the
    /// action's own reach, the search ends early: the action can keep a different limit only if
    /// both are masks.
    fn broken_by(&self, action: &Action) -> Option<usize> {
        let up_to = (action.reach(), usize::MAX);
        let mut limits = self.by_limit.range(..=up_to).map(|(_, one)| one);
        let broken = limits.find(|(limit, _)| action.compared_with(limit) != Comparison::NoLooser);
        broken.and_then(|(_, promises)| promises.first().copied())
    }
}
