//! The variants of a policy, and the mistakes in each.

use std::collections::HashSet;
use std::sync::Arc;

use msrgate_filter::{Access, MsrIndex};
use msrgate_program::{Line, ResolvedVariant, Rules, distinguished, told_apart};

use super::active::{Active, variants};
use super::finals::Finals;
use super::unsound::{at_the_top, unsound, without_effect};
use super::{conflict, lines, rules};
use crate::limits::{MAX_ENTRIES_ON_ALL, MAX_MISTAKES};
use crate::mistake::{COMBINATIONS, ENTRIES_ON_ALL, Mistake, MistakeKind, PROCESSORS};
use crate::overrides::Overrides;
use crate::parse::Stated;
use crate::policy::Policy;

/// The maximum number of variants. Each variant becomes a filter of its own.
const MAX_VARIANTS: usize = 64;

/// The number of kinds of processors beyond which variants are not enumerated.
const MAX_TOLD_APART: usize = 1 << 20;

/// Adds to `mistakes`, up to [`MAX_MISTAKES`], the mistakes that show only when all entries are
/// seen together. Returns the rules of each variant. A variant with mistakes may be left out.
/// `stated` are the settings of each text. `is_excused` returns true for kinds that do not count as
/// mistakes.
pub(super) fn resolve(
    policy: &Policy,
    stated: &[Stated],
    is_excused: impl Fn(&MistakeKind) -> bool,
    mistakes: &mut Vec<Mistake>,
) -> Vec<ResolvedVariant> {
    let is_mistake = |mistake: &Mistake| !is_excused(&mistake.kind);
    mistakes.extend(without_effect(policy).into_iter().filter(is_mistake));
    if let Some((what, found, limit)) = beyond_a_limit(policy) {
        let kind = MistakeKind::TooMany { what, found, limit };
        let places = Vec::new();
        mistakes.push(Mistake { kind, places });
        return Vec::new();
    }
    let overrides = Overrides::of(policy);
    let finals = Finals::new(policy, stated, &overrides);
    let groups = conflict::Groups::of(policy);
    let lines = lines(policy);
    let mut seen: HashSet<Mistake> = HashSet::new();
    let mut resolved = Vec::new();
    for active in variants(policy) {
        if mistakes.len() >= MAX_MISTAKES {
            break;
        }
        let (found, rules) = of_variant(policy, &active, &finals, &groups, &lines);
        for mistake in found.into_iter().filter(is_mistake) {
            if seen.insert(mistake.clone()) {
                mistakes.push(mistake);
            }
        }
        resolved.extend(rules.map(|rules| ResolvedVariant {
            holds: active.holds,
            example: active.example,
            rules,
        }));
    }
    resolved
}

/// Returns the limit that a policy exceeds, counted before anything is resolved: its name, the
/// number found, and the maximum.
fn beyond_a_limit(policy: &Policy) -> Option<(&'static str, usize, usize)> {
    let cpus: Vec<_> = policy.whens.iter().map(|when| when.cpus.clone()).collect();
    let found = told_apart(&cpus);
    if found > MAX_TOLD_APART {
        return Some((PROCESSORS, found, MAX_TOLD_APART));
    }
    let ways = distinguished(&cpus);
    if ways.len() > MAX_VARIANTS {
        return Some((COMBINATIONS, ways.len(), MAX_VARIANTS));
    }
    let mut entries = vec![0; cpus.len()];
    for when in policy.entries().iter().filter_map(|entry| entry.when) {
        entries[when.number()] += 1;
    }
    let everywhere = policy.entries().len() - entries.iter().sum::<usize>();
    let of_way = |holds: &[bool]| {
        let holding = holds.iter().zip(&entries).filter(|(holds, _)| **holds);
        everywhere + holding.map(|(_, entries)| entries).sum::<usize>()
    };
    let found = ways.iter().map(|(holds, _)| of_way(holds)).sum();
    (found > MAX_ENTRIES_ON_ALL).then_some((ENTRIES_ON_ALL, found, MAX_ENTRIES_ON_ALL))
}

fn of_variant(
    policy: &Policy,
    active: &Active,
    finals: &Finals<'_>,
    groups: &conflict::Groups,
    lines: &Arc<[Line]>,
) -> (Vec<Mistake>, Option<Rules>) {
    let mut mistakes = conflict::find(policy, groups, &active.entries);
    // If entries conflict, two of the smallest entries for an MSR may disagree, so the policy's
    // decision would have no meaning.
    if !mistakes.is_empty() {
        return (mistakes, None);
    }
    let table = rules(policy, &active.entries, Arc::clone(lines));
    mistakes.extend(finals.broken(active, &table));
    for access in Access::ALL {
        mistakes.extend(
            table
                .of(access)
                .filter_map(|one| unsound(policy, one, access))
                .take(MAX_MISTAKES),
        );
        mistakes.extend(at_the_top(policy, table.at(MsrIndex::MAX, access)));
    }
    (mistakes, Some(table))
}
