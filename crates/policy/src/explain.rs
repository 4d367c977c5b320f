//! What happens to one access under a policy, and what says so.

use msrgate_filter::{Access, Because, Decision, MsrIndex};

use crate::action::Action;
use crate::compile::Variant;
use crate::policy::{Entry, Policy};
use crate::table::Said;

/// Everything that decides one access.
#[derive(Clone, Debug)]
pub struct Explanation<'p> {
    /// The MSR.
    pub index: MsrIndex,
    /// The direction.
    pub access: Access,
    /// What the policy says.
    pub action: Action,
    /// What in the policy says so.
    pub said: Said,
    /// The entry that says so, unless it is the default, or KVM.
    pub entry: Option<&'p Entry>,
    /// What the kernel's filter decides.
    pub decision: Decision,
}

impl Explanation<'_> {
    /// The range of the filter that decides, counted from 0.
    #[must_use]
    pub const fn range(&self) -> Option<usize> {
        match self.decision.because {
            Because::Range(number) => Some(number.get()),
            _ => None,
        }
    }
}

/// Explains an access under one variant of a policy.
#[must_use]
pub fn explain<'p>(
    policy: &'p Policy,
    variant: &Variant,
    index: MsrIndex,
    access: Access,
) -> Explanation<'p> {
    let segment = variant.table().at(index, access);
    let entry = match segment.said {
        Said::ByEntry(id) => Some(policy.entry(id)),
        Said::ByDefault | Said::ByKvm => None,
    };
    Explanation {
        index,
        access,
        action: segment.action.clone(),
        said: segment.said,
        entry,
        decision: variant.filter().decide(index, access),
    }
}
