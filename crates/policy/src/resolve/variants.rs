//! The ways in which the `[[when]]`s of a policy hold, and what is wrong in each.

use std::collections::HashSet;
use std::sync::Arc;

use msrgate_filter::{Access, MsrIndex};
use msrgate_program::{Line, ResolvedVariant, Rules, told_apart};

use super::active::{Active, variants};
use super::finals::Finals;
use super::unsound::{at_the_top, unsound, without_effect};
use super::{conflict, lines, rules};
use crate::mistake::{Mistake, Wrong};
use crate::overrides::Overrides;
use crate::parse::Stated;
use crate::policy::Policy;

/// More ways than this are a mistake: each becomes a filter of its own.
const MAX_VARIANTS: usize = 64;

/// With more processors than this to look at, those ways are not looked for.
const MAX_TOLD_APART: usize = 1 << 20;

/// Everything that is wrong with the entries together, and the rules of each variant. Of a variant that has
/// mistakes there may be none. `stated` are the settings of each text.
pub(super) fn resolve(policy: &Policy, stated: &[Stated]) -> (Vec<Mistake>, Vec<ResolvedVariant>) {
    let mut mistakes = without_effect(policy);
    let cpus: Vec<_> = policy.whens.iter().map(|when| when.cpus.clone()).collect();
    let too_many = |what, found, limit| Mistake {
        wrong: Wrong::TooMany { what, found, limit },
        places: Vec::new(),
    };
    let found = told_apart(&cpus);
    if found > MAX_TOLD_APART {
        let what = "processors that its `when`s tell apart";
        mistakes.push(too_many(what, found, MAX_TOLD_APART));
        return (mistakes, Vec::new());
    }
    let variants = variants(policy);
    if variants.len() > MAX_VARIANTS {
        let what = "ways in which its `when`s hold";
        mistakes.push(too_many(what, variants.len(), MAX_VARIANTS));
        return (mistakes, Vec::new());
    }
    let overrides = Overrides::of(policy);
    let finals = Finals::new(policy, stated, &overrides);
    let lines = lines(policy);
    let mut seen: HashSet<Mistake> = HashSet::new();
    let mut resolved = Vec::new();
    for active in variants {
        let (found, rules) = of_variant(policy, &active, &finals, &lines);
        for mistake in found {
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
    (mistakes, resolved)
}

fn of_variant(
    policy: &Policy,
    active: &Active,
    finals: &Finals<'_>,
    lines: &Arc<[Line]>,
) -> (Vec<Mistake>, Option<Rules>) {
    let entries: Vec<_> = active
        .entries
        .iter()
        .map(|&id| (id, policy.entry(id)))
        .collect();
    let mut mistakes = conflict::find(&entries);
    // What the smallest entry says means nothing where two of them disagree.
    if !mistakes.is_empty() {
        return (mistakes, None);
    }
    let table = rules(policy, &active.entries, Arc::clone(lines));
    mistakes.extend(finals.broken(active, &table));
    for access in Access::ALL {
        mistakes.extend(
            table
                .of(access)
                .filter_map(|one| unsound(policy, one, access)),
        );
        mistakes.extend(at_the_top(policy, table.at(MsrIndex::MAX, access)));
    }
    (mistakes, Some(table))
}
