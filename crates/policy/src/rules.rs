//! What happens to each of 2^32 MSRs in each direction, once nothing of the policy's text is needed.

use msrgate_filter::{Access, Filter, MsrIndex, Verdict, X2APIC};

use crate::action::Action;
use crate::equality::{covered, points};
use crate::msrs::MsrRange;
use crate::settings::Log;
use crate::verdicts::Verdicts;

/// Consecutive MSRs to which the same happens, for the same reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// The MSRs.
    pub msrs: MsrRange,
    /// What happens to them.
    pub action: Action,
    /// Which of these accesses become events.
    pub log: Log,
    /// What says so.
    pub origin: Origin,
}

/// What says what happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Origin {
    /// A line of a policy.
    Line(Line),
    /// The policy's default.
    Default,
    /// KVM: an x2APIC register, which it never filters (S3.1).
    Kvm,
}

impl Origin {
    /// As one number, for a queue of events.
    #[must_use]
    pub fn to_bits(self) -> u64 {
        match self {
            Self::Kvm => 0,
            Self::Default => 1,
            Self::Line(Line { file, number }) => {
                u64::from(number) << 32 | u64::from(file.0.saturating_add(2))
            }
        }
    }

    /// What [`Self::to_bits`] made of it.
    #[must_use]
    pub fn from_bits(bits: u64) -> Self {
        let [f0, f1, f2, f3, n0, n1, n2, n3] = bits.to_le_bytes();
        match u32::from_le_bytes([f0, f1, f2, f3]) {
            0 => Self::Kvm,
            1 => Self::Default,
            file => Self::Line(Line {
                file: FileId(file - 2),
                number: u32::from_le_bytes([n0, n1, n2, n3]),
            }),
        }
    }
}

/// A line of one of the texts that a program was made from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Line {
    /// The text.
    pub file: FileId,
    /// Counted from 1.
    pub number: u32,
}

/// The number of a text that a program was made from: see [`Program::file`](crate::Program::file).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FileId(pub(crate) u32);

/// For each direction, rules that cover all MSRs once, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rules {
    by_access: [Vec<Rule>; 2],
    /// Where each rule ends, close together: exits are looked up among them.
    lasts: [Box<[MsrIndex]>; 2],
}

impl Rules {
    /// Rules that already cover everything, reads first.
    pub(crate) fn new(by_access: [Vec<Rule>; 2]) -> Self {
        let lasts = by_access
            .each_ref()
            .map(|rules| rules.iter().map(|rule| rule.msrs.last()).collect());
        Self { by_access, lasts }
    }

    /// What a filter without a policy does.
    pub(crate) fn of_filter(filter: &Filter) -> Self {
        Self::new(Access::ALL.map(|access| stretches(filter, access)))
    }

    /// The rules of one direction, in order, without a gap.
    #[must_use]
    pub fn of(&self, access: Access) -> &[Rule] {
        &self.by_access[access as usize]
    }

    /// The rule of one MSR.
    #[must_use]
    pub fn at(&self, index: MsrIndex, access: Access) -> &Rule {
        &self.of(access)[self.place(index, access)]
    }

    /// The same for who asks often, and remembers where it was found the last time.
    #[inline]
    pub(crate) fn at_again(&self, hints: &mut Hints, index: MsrIndex, access: Access) -> &Rule {
        let rules = self.of(access);
        let hint = hints.of(index, access);
        match rules.get(*hint as usize) {
            Some(rule) if rule.msrs.contains(index) => rule,
            _ => {
                let place = self.place(index, access);
                *hint = u32::try_from(place).unwrap_or(0);
                &rules[place]
            }
        }
    }

    fn place(&self, index: MsrIndex, access: Access) -> usize {
        self.lasts[access as usize].partition_point(|&last| last < index)
    }

    /// The rules that share MSRs with `range`.
    pub(crate) fn within(&self, range: MsrRange, access: Access) -> &[Rule] {
        let rules = self.of(access);
        let start = rules.partition_point(|rule| rule.msrs.last() < range.first());
        let end = rules.partition_point(|rule| rule.msrs.first() <= range.last());
        &rules[start..end]
    }

    /// All of them, reads first.
    pub(crate) fn all(&self) -> impl Iterator<Item = (Access, &Rule)> {
        let of = |access| self.of(access).iter().map(move |rule| (access, rule));
        Access::ALL.into_iter().flat_map(of)
    }

    /// What a filter has to say. `default` is that of the filter that is to be made.
    pub(crate) fn verdicts(&self, default: Verdict) -> Verdicts {
        Verdicts::new(default, |access| {
            self.of(access).iter().map(|rule| {
                let is_asked = rule.origin != Origin::Kvm;
                (rule.msrs, is_asked.then(|| rule.action.verdict()))
            })
        })
    }
}

/// Where the rules of some MSRs were found. Of any other rules, or of none, they are wrong guesses and
/// cost a search. Guests come back to the same few registers.
#[derive(Clone, Debug, Default)]
pub(crate) struct Hints([[u32; HINTS]; 2]);

/// MSRs whose indices differ in these low bits do not share a hint.
const HINTS: usize = 32;

impl Hints {
    #[inline]
    fn of(&mut self, index: MsrIndex, access: Access) -> &mut u32 {
        &mut self.0[access as usize][index.get() as usize % HINTS]
    }
}

/// What a filter says of one direction. Its answer changes at the points only.
fn stretches(filter: &Filter, access: Access) -> Vec<Rule> {
    let everything = [(MsrIndex::MIN, MsrIndex::MAX)];
    let mut starts: Vec<_> = everything
        .iter()
        .filter_map(|&(first, last)| MsrRange::new(first, last))
        .flat_map(|all| points(all, &covered(filter)).collect::<Vec<_>>())
        .chain([*X2APIC.start(), MsrIndex::new(X2APIC.end().get() + 1)])
        .collect();
    starts.sort_unstable();
    starts.dedup();
    let mut rules: Vec<Rule> = Vec::new();
    for first in starts {
        let (action, origin) = if X2APIC.contains(&first) {
            (Action::Allow, Origin::Kvm)
        } else {
            match filter.decide(first, access).verdict {
                Verdict::Allow => (Action::Allow, Origin::Default),
                Verdict::Deny => (Action::Deny, Origin::Default),
            }
        };
        if let Some(before) = rules.last_mut() {
            if before.action == action && before.origin == origin {
                continue;
            }
            let end = MsrIndex::new(first.get() - 1);
            before.msrs = MsrRange::new(before.msrs.first(), end).unwrap_or(before.msrs);
        }
        // To the end, until another one begins.
        if let Some(msrs) = MsrRange::new(first, MsrIndex::MAX) {
            let log = Log::None;
            rules.push(Rule {
                msrs,
                action,
                log,
                origin,
            });
        }
    }
    rules
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(lasts: &[u32]) -> Rules {
        let mut next = Some(0);
        let mut rule = |&last: &u32| {
            let msrs = MsrRange::new(MsrIndex::new(next?), MsrIndex::new(last))?;
            next = last.checked_add(1);
            Some(Rule {
                msrs,
                action: Action::Deny,
                log: Log::None,
                origin: Origin::Default,
            })
        };
        let rules: Option<Vec<_>> = lasts.iter().map(&mut rule).collect();
        let rules = rules.unwrap();
        Rules::new([rules.clone(), rules])
    }

    /// Whatever was asked before, of these rules or of others.
    #[test]
    fn a_hint_is_never_believed_blindly() {
        let few = rules(&[0x1f, u32::MAX]);
        let many = rules(&[0, 0x10, 0x11, 0x20, 0x3f, 0x1000, 0xc000_0082, u32::MAX]);
        let mut hints = Hints::default();
        let indices = [0, 1, 0x10, 0x11, 0x20, 0x30, 0x50, 0xc000_0082, u32::MAX];
        for (first, second) in indices.iter().flat_map(|a| indices.map(|b| (*a, b))) {
            for rules in [&many, &few, &many] {
                for index in [first, second, first].map(MsrIndex::new) {
                    for access in Access::ALL {
                        let found = rules.at_again(&mut hints, index, access);
                        assert_eq!(found, rules.at(index, access), "{index} after {first:#x}");
                    }
                }
            }
        }
    }
}
