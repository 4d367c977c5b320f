//! The rules of a filter that has no policy.

use alloc::sync::Arc;
use alloc::vec::Vec;

use msrgate_filter::{Access, Filter, MsrIndex, Verdict, X2APIC};

use crate::action::Action;
use crate::msrs::MsrRange;
use crate::origin::DecidedBy;
use crate::pack::equality::{covered, points};
use crate::rules::{Outcome, Rules, RulesBuilder};
use crate::settings::Log;

/// Returns rules with the decisions of the filter. The origin of each rule is the default action,
/// because there are no entries. From one MSR to the next, the decision can change only where a
/// range begins or ends, or within a range.
pub(super) fn rules(filter: &Filter) -> Rules {
    let mut builder = RulesBuilder::default();
    let mut starts: Vec<_> = points(MsrRange::ALL, &covered(filter))
        .chain([*X2APIC.start(), MsrIndex::new(X2APIC.end().get() + 1)])
        .collect();
    starts.sort_unstable();
    starts.dedup();
    for access in Access::ALL {
        // Each rule ends before the next start.
        for (first, next) in starts.iter().zip(&starts[1..]) {
            let last = MsrIndex::new(next.get() - 1);
            let (outcome, by) = decided(filter, *first, access);
            builder.join(access, last, &outcome, by);
        }
    }
    let (rest, _) = decided(filter, MsrIndex::MAX, Access::Read);
    builder.finish(&rest, Arc::default())
}

fn decided(filter: &Filter, index: MsrIndex, access: Access) -> (Outcome, DecidedBy) {
    let outcome = |action| Outcome {
        action,
        log: Log::None,
    };
    if X2APIC.contains(&index) {
        return (outcome(Action::Allow), DecidedBy::Kvm);
    }
    let action = match filter.decide(index, access).verdict {
        Verdict::Allow => Action::Allow,
        Verdict::Deny => Action::Deny,
    };
    (outcome(action), DecidedBy::Default)
}
