//! The rules of a resolved policy: an action for each of 2^32 MSRs in each direction, and the entry
//! that decides it.

use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::sync::Arc;
use alloc::vec::Vec;

use msrgate_filter::{Access, MsrIndex, Verdict};

use crate::action::Action;
use crate::msrs::MsrRange;
use crate::origin::{DecidedBy, Line, Origin, PackedBy};
use crate::pack::Verdicts;
use crate::range_map::{RangeMap, RangeMapBuilder};
use crate::settings::Log;

/// A rule: consecutive MSRs that have the same action and logging in one direction, decided by the same
/// entry, default action or rule of KVM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rule<'r> {
    /// The MSRs that the rule covers.
    pub msrs: MsrRange,
    /// The action for accesses to the MSRs.
    pub action: &'r Action,
    /// The log level: says which accesses to the MSRs become events.
    pub log: Log,
    /// The entry of the policy, the policy's default action, or the rule of KVM that the rule comes
    /// from.
    pub by: DecidedBy,
}

/// An action for accesses, with the log level that says which of these accesses become events.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Outcome {
    /// The action for the accesses.
    pub action: Action,
    /// The log level: says which of the accesses become events.
    pub log: Log,
}

/// The rules for all MSRs. In each direction every MSR has exactly one rule, and the rules are in
/// the order of the MSRs.
///
/// A policy of 100,000 entries may have 200,000 rules in each direction, so a rule is stored as
/// three numbers of 32 bits.
#[derive(Clone, Debug)]
pub struct Rules {
    by_access: [RangeMap<Kept>; 2],
    /// The outcomes, without duplicates.
    outcomes: Box<[Outcome]>,
    /// The line of each entry in the policy's text, in the order of the entries' [`EntryId`]s.
    lines: Arc<[Line]>,
}

/// A rule as the map of rules stores it, without the rule's MSRs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Kept {
    /// The position of the outcome in [`Rules::outcomes`].
    outcome: u32,
    by: PackedBy,
}

impl Rules {
    /// Iterates over the rules of one direction, in order and without gaps.
    #[must_use]
    pub fn of(&self, access: Access) -> impl DoubleEndedIterator<Item = Rule<'_>> + Clone {
        let kept = self.by_access[access as usize].iter();
        kept.map(|(msrs, kept)| self.rule(msrs, *kept))
    }

    /// The number of rules of one direction.
    #[must_use]
    pub fn count(&self, access: Access) -> usize {
        self.by_access[access as usize].len()
    }

    /// The rule for accesses to one MSR in one direction.
    #[must_use]
    pub fn at(&self, index: MsrIndex, access: Access) -> Rule<'_> {
        let map = &self.by_access[access as usize];
        self.nth(map, map.place(index))
    }

    /// Returns the action and logging for accesses to one MSR, and the entry that decides them. `hints`
    /// makes repeated calls for the same MSR fast.
    #[inline]
    pub(crate) fn at_again(
        &self,
        hints: &mut Hints,
        index: MsrIndex,
        access: Access,
    ) -> (&Outcome, PackedBy) {
        let map = &self.by_access[access as usize];
        let hint = hints.of(index, access);
        let kept = map.at_place(*hint as usize, index).unwrap_or_else(|| {
            let place = map.place(index);
            *hint = u32::try_from(place).unwrap_or(0);
            map.value(place)
        });
        (&self.outcomes[kept.outcome as usize], kept.by)
    }

    /// Iterates over the rules that share MSRs with `range`.
    pub fn within(&self, range: MsrRange, access: Access) -> impl Iterator<Item = Rule<'_>> {
        let kept = self.by_access[access as usize].within(range);
        kept.map(|(msrs, kept)| self.rule(msrs, *kept))
    }

    /// Iterates over all rules, reads first.
    pub fn all(&self) -> impl Iterator<Item = (Access, Rule<'_>)> {
        let of = |access| self.of(access).map(move |rule| (access, rule));
        Access::ALL.into_iter().flat_map(of)
    }

    /// Iterates over two sets of rules at once, of one direction each. Each item is a pair of
    /// rules, one of each set, cut so that both have the same MSRs. The items are in order and
    /// without gaps.
    pub fn zip<'r>(
        &'r self,
        access: Access,
        other: &'r Self,
        others: Access,
    ) -> impl Iterator<Item = (Rule<'r>, Rule<'r>)> {
        let (mine, theirs) = (
            &self.by_access[access as usize],
            &other.by_access[others as usize],
        );
        mine.zip(theirs)
            .map(|(msrs, mine, theirs)| (self.rule(msrs, *mine), other.rule(msrs, *theirs)))
    }

    /// Returns the place in the policy that `by` stands for, in the form that messages and events show: the
    /// line of an entry, the default action, or KVM. An entry whose line is not known counts as the default
    /// action.
    #[inline]
    #[must_use]
    pub fn origin(&self, by: DecidedBy) -> Origin {
        match by {
            DecidedBy::Kvm => Origin::Kvm,
            DecidedBy::Default => Origin::Default,
            DecidedBy::Entry(entry) => self
                .lines
                .get(entry.number())
                .map_or(Origin::Default, |line| Origin::Line(*line)),
        }
    }

    /// Returns the verdicts for a filter with the default action `default`.
    #[must_use]
    pub fn verdicts(&self, default: Verdict) -> Verdicts {
        Verdicts::new(default, |access| {
            self.of(access).map(|rule| {
                let is_asked = rule.by != DecidedBy::Kvm;
                (rule.msrs, is_asked.then(|| rule.action.verdict()))
            })
        })
    }

    fn nth(&self, map: &RangeMap<Kept>, place: usize) -> Rule<'_> {
        let msrs = map.range(place);
        self.rule(msrs, *map.value(place))
    }

    #[inline]
    fn rule(&self, msrs: MsrRange, kept: Kept) -> Rule<'_> {
        let Outcome { action, log } = &self.outcomes[kept.outcome as usize];
        Rule {
            msrs,
            action,
            log: *log,
            by: kept.by.get(),
        }
    }
}

/// A builder of rules, from the lowest MSR up in each direction.
#[derive(Debug, Default)]
pub struct RulesBuilder {
    by_access: [RangeMapBuilder<Kept>; 2],
    outcomes: Vec<Outcome>,
    places: BTreeMap<Outcome, u32>,
}

impl RulesBuilder {
    /// The last MSR of a direction that has a rule so far.
    #[must_use]
    pub fn last(&self, access: Access) -> Option<MsrIndex> {
        self.by_access[access as usize].last()
    }

    /// Adds a rule from the first MSR without a rule up to `last`.
    pub fn push(&mut self, access: Access, last: MsrIndex, outcome: &Outcome, by: DecidedBy) {
        let kept = self.kept(outcome, by);
        self.by_access[access as usize].push(last, kept);
    }

    /// Adds a rule from the first MSR without a rule up to `last`. If the last rule so far has the same
    /// action and logging and was decided by the same entry, that rule is extended instead.
    pub fn join(&mut self, access: Access, last: MsrIndex, outcome: &Outcome, by: DecidedBy) {
        let kept = self.kept(outcome, by);
        self.by_access[access as usize].join(last, kept);
    }

    /// Returns the rules. MSRs without a rule get one with the outcome `rest`, decided by the
    /// default. `lines` has the line of each entry.
    #[must_use]
    pub fn finish(mut self, rest: &Outcome, lines: Arc<[Line]>) -> Rules {
        let rest = self.kept(rest, DecidedBy::Default);
        Rules {
            by_access: self.by_access.map(|map| map.finish(rest)),
            outcomes: self.outcomes.into(),
            lines,
        }
    }

    fn kept(&mut self, outcome: &Outcome, by: DecidedBy) -> Kept {
        let outcome = if let Some(&place) = self.places.get(outcome) {
            place
        } else {
            // There are fewer different outcomes than entries, and a policy may have far fewer
            // entries than 32 bits can count.
            let place = u32::try_from(self.outcomes.len()).unwrap_or(u32::MAX);
            self.outcomes.push(outcome.clone());
            self.places.insert(outcome.clone(), place);
            place
        };
        Kept {
            outcome,
            by: PackedBy::of(by),
        }
    }
}

/// The positions at which earlier lookups of some MSRs found the rules of these MSRs.
///
/// Guests access the same few registers again and again, so most lookups need no search. A wrong
/// position, for example from a lookup in other rules, only costs a search.
#[derive(Clone, Debug, Default)]
pub(crate) struct Hints([[u32; HINTS]; 2]);

/// The number of hints, remembered positions of rules, in each direction. MSRs whose lowest bits
/// differ do not share a hint.
const HINTS: usize = 32;

impl Hints {
    #[inline]
    fn of(&mut self, index: MsrIndex, access: Access) -> &mut u32 {
        &mut self.0[access as usize][index.get() as usize % HINTS]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(lasts: &[u32]) -> Rules {
        let mut builder = RulesBuilder::default();
        let deny = Outcome {
            action: Action::Deny,
            log: Log::None,
        };
        for access in Access::ALL {
            for last in lasts {
                builder.push(access, MsrIndex::new(*last), &deny, DecidedBy::Default);
            }
        }
        builder.finish(&deny, Arc::default())
    }

    /// A stored rule takes eight bytes besides its last MSR. The size matters because a policy of
    /// 250,000 entries may have twice as many rules in each direction.
    #[test]
    fn stored_rule_takes_eight_bytes_besides_its_last_msr() {
        assert_eq!(size_of::<Kept>(), 8);
    }

    /// A lookup returns the correct rule, even if the remembered position with which the lookup
    /// begins comes from a lookup of another MSR or in other rules.
    #[test]
    fn rule_lookup_ignores_position_remembered_for_another_msr_or_other_rules() {
        let few = rules(&[0x1f, u32::MAX]);
        let many = rules(&[0, 0x10, 0x11, 0x20, 0x3f, 0x1000, 0xc000_0082, u32::MAX]);
        let mut hints = Hints::default();
        let indices = [0, 1, 0x10, 0x11, 0x20, 0x30, 0x50, 0xc000_0082, u32::MAX];
        for (first, second) in indices.iter().flat_map(|a| indices.map(|b| (*a, b))) {
            for rules in [&many, &few, &many] {
                for index in [first, second, first].map(MsrIndex::new) {
                    for access in Access::ALL {
                        let (found, by) = rules.at_again(&mut hints, index, access);
                        let rule = rules.at(index, access);
                        let (found, wanted) = ((&found.action, by.get()), (rule.action, rule.by));
                        assert_eq!(found, wanted, "{index} after {first:#x}");
                    }
                }
            }
        }
    }
}
