//! What happens to one access under a policy, and what says so.

mod guest;

use std::fmt;

use msrgate_filter::{
    Access, Because, Decision, ExitNumber, ExitReason, MsrIndex, ReasonMask, Revision, Verdict,
};
use msrgate_program::{Action, DecidedBy, MsrRange, Rule, Variant};

use crate::enforcement::{Bypass, Extent, enforcement_of};
use crate::policy::{Entry, Log, Mode, Policy, Settings, UnknownAction};

/// Everything that decides one access.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Explanation<'p> {
    /// The MSR.
    pub index: MsrIndex,
    /// The direction.
    pub access: Access,
    /// What the policy says.
    pub action: Action,
    /// What in the policy says so.
    pub by: DecidedBy,
    /// The entry that says so, unless it is the default, or KVM.
    pub entry: Option<&'p Entry>,
    /// What the kernel's filter decides.
    pub decision: Decision,
    /// Which of these accesses become events.
    pub log: Log,
    settings: &'p Settings,
    segment: Rule<'p>,
}

/// How user space learns of an access that comes to the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reported {
    /// It does not: KVM carries the access out.
    Nothing,
    /// It does not: the kernel gives the guest #GP (S5.2).
    Fault,
    /// `KVM_RUN` returns with this number, and this reason in `kvm_run.msr.reason` (S5.3).
    Exit(ExitNumber, ExitReason),
}

/// `nothing`, `#GP`, `exit 29 (KVM_EXIT_X86_RDMSR), reason filter (4)`.
impl fmt::Display for Reported {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (number, reason) = match self {
            Self::Nothing => return f.write_str("nothing"),
            Self::Fault => return f.write_str("#GP"),
            Self::Exit(number, reason) => (number, reason),
        };
        let name = match *number {
            ExitNumber::RDMSR => "KVM_EXIT_X86_RDMSR",
            _ => "KVM_EXIT_X86_WRMSR",
        };
        write!(f, "exit {} ({name}), reason {reason}", number.get())?;
        match reason.bit(Revision::Mainline) {
            Some(bit) => write!(f, " ({})", bit.bits()),
            None => Ok(()),
        }
    }
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

    /// What the guest gets, in words without a full stop. What is answered is as a gate answers it;
    /// without one it is refused.
    #[must_use]
    pub fn guest(&self) -> String {
        guest::gets(self)
    }

    /// Whether [`Self::guest`] needs a gate in the VMM. Without one the guest gets #GP.
    #[must_use]
    pub fn needs_gate(&self) -> bool {
        let is_plain = self.action == Action::Deny && !self.is_let_through();
        self.decision.verdict == Verdict::Deny && !is_plain
    }

    /// What the guest gets where KVM does not know the register; `None` for accesses that are no
    /// matter of KVM's registers, or that no filter is asked about (S3.1, S5.1).
    #[must_use]
    pub fn unknown(&self) -> Option<UnknownAction> {
        let unknown = &self.settings.unknown;
        match self.action {
            _ if self.by == DecidedBy::Kvm => None,
            Action::Allow => Some(match self.access {
                Access::Read => unknown.read,
                Access::Write => unknown.write,
            }),
            // `unknown` is for what no entry refuses, in an audit too.
            _ if self.is_let_through() => Some(UnknownAction::Deny),
            _ => None,
        }
    }

    /// Whether it is refused in an audit, which lets it through. No filter opens for the last MSR
    /// alone (S3.5).
    fn is_let_through(&self) -> bool {
        let audits = self.settings.mode == Mode::Audit;
        audits && self.action.refuses() && self.index != MsrIndex::MAX
    }

    /// Whether some of these accesses, or all, get the guest a #GP or its end by this policy.
    fn may_refuse(&self) -> bool {
        self.action.refuses() || self.access == Access::Write && self.action.refuses_some()
    }

    /// What the kernel reports, where the VM's mask is this one.
    #[must_use]
    pub fn reported(&self, mask: ReasonMask) -> Reported {
        match self.decision.verdict {
            Verdict::Allow => Reported::Nothing,
            Verdict::Deny => self.failed(mask, ExitReason::Filter),
        }
    }

    /// What the kernel reports of an access that it carries out, should it not know the register.
    #[must_use]
    pub fn reported_unknown(&self, mask: ReasonMask) -> Option<Reported> {
        self.unknown()
            .map(|_| self.failed(mask, ExitReason::Unknown))
    }

    fn failed(&self, mask: ReasonMask, reason: ExitReason) -> Reported {
        let number = match self.access {
            Access::Read => ExitNumber::RDMSR,
            Access::Write => ExitNumber::WRMSR,
        };
        if mask.contains(Revision::Mainline, reason) {
            Reported::Exit(number, reason)
        } else {
            Reported::Fault
        }
    }

    /// Which of these accesses become events, in words without a full stop.
    #[must_use]
    pub fn events(&self) -> &'static str {
        let may_refuse = self.may_refuse();
        match self.log {
            _ if self.by == DecidedBy::Kvm => "none: KVM asks neither filter nor VMM",
            Log::None => "none",
            Log::Denied if self.settings.mode == Mode::Audit && may_refuse => {
                "one for each access that would be refused"
            }
            Log::Denied if self.action.refuses() => "one for each access",
            Log::Denied if may_refuse => "one for each access that is refused",
            Log::Denied => "none: only refusals are logged",
            Log::First => "one for the first access of the VM",
            Log::All => "one for each access",
        }
    }

    /// How far this is enforced, and what goes past it.
    #[must_use]
    pub fn enforced(&self) -> (Extent, Vec<Bypass>) {
        enforcement_of(self.settings, self.segment, self.access)
    }
}

/// Explains an access under one variant of a policy.
#[must_use]
pub fn explain<'p>(
    policy: &'p Policy,
    variant: &'p Variant,
    index: MsrIndex,
    access: Access,
) -> Explanation<'p> {
    let segment = variant.rules().at(index, access);
    let entry = match segment.by {
        DecidedBy::Entry(id) => Some(policy.entry(id)),
        DecidedBy::Default | DecidedBy::Kvm => None,
    };
    let settings = policy.settings();
    Explanation {
        index,
        access,
        action: segment.action.clone(),
        by: segment.by,
        entry,
        decision: variant.filter().decide(index, access),
        log: segment.log,
        settings,
        segment: Rule {
            msrs: MsrRange::one(index),
            ..segment
        },
    }
}

#[cfg(test)]
mod tests;
