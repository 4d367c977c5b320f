//! What happens to one access under a policy, and what says so.

use msrgate_filter::{Access, Because, Decision, MsrIndex};

use crate::compile::Compiled;
use crate::policy::{Action, Entry};
use crate::table::Said;

/// Everything that decides one access.
#[derive(Clone, Copy, Debug)]
pub struct Explanation<'c> {
    /// The MSR.
    pub index: MsrIndex,
    /// The direction.
    pub access: Access,
    /// What the policy says.
    pub action: Action,
    /// What in the policy says so.
    pub said: Said,
    /// The entry that says so, unless it is the default, or KVM.
    pub entry: Option<&'c Entry>,
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

/// Explains an access.
#[must_use]
pub fn explain(compiled: &Compiled, index: MsrIndex, access: Access) -> Explanation<'_> {
    let segment = compiled.table().at(index, access);
    let entry = match segment.said {
        Said::ByEntry(id) => Some(compiled.policy().entry(id)),
        Said::ByDefault | Said::ByKvm => None,
    };
    Explanation {
        index,
        access,
        action: segment.action,
        said: segment.said,
        entry,
        decision: compiled.filter().decide(index, access),
    }
}
