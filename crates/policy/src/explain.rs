//! The explanation of one access: the policy's decision and its reason.

mod events;
mod guest;

use std::fmt;

use msrgate_filter::{
    Access, Because, Decision, ExitNumber, ExitReason, MsrIndex, ReasonMask, Revision, Verdict,
};
use msrgate_program::{Action, DecidedBy, MsrRange, Rule, Variant};

use crate::enforcement::{Bypass, Extent, enforcement_of};
use crate::policy::{Entry, Log, Mode, Policy, Settings, UnknownAction};

pub use events::Events;

/// The decision about one access, with everything that leads to it.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Explanation<'p> {
    /// The MSR that the guest accesses.
    pub index: MsrIndex,
    /// The direction of the access: a read or a write.
    pub access: Access,
    /// The action that the policy gives to the access.
    pub action: Action,
    /// The part of the policy that decides the access: an entry, the default, or KVM itself.
    pub by: DecidedBy,
    /// The entry that decides the access. `None`: the default or KVM decides.
    pub entry: Option<&'p Entry>,
    /// The decision of the kernel's filter about the access.
    pub decision: Decision,
    /// The accesses of this MSR and direction that become events.
    pub log: Log,
    settings: &'p Settings,
    segment: Rule<'p>,
}

/// The report that KVM gives user space of a guest's access, refused or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reported {
    /// No report: KVM carries the access out.
    Nothing,
    /// No report: the kernel gives the guest #GP (S5.2).
    Fault,
    /// An exit: `KVM_RUN` returns with this exit number, and with this reason in
    /// `kvm_run.msr.reason` (S5.3).
    Exit(ExitNumber, ExitReason),
}

/// Writes `nothing`, `#GP`, or an exit such as `exit 29 (KVM_EXIT_X86_RDMSR), reason filter (4)`.
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
    /// The number of the filter's range that decides the access, counted from 0. `None`: no range
    /// decides.
    #[must_use]
    pub const fn range(&self) -> Option<usize> {
        match self.decision.because {
            Because::Range(number) => Some(number.get()),
            _ => None,
        }
    }

    /// Returns the result that the guest gets, in words without a full stop. The result assumes a
    /// gate in the VMM; [`Self::needs_gate`] tells if the result depends on a gate.
    #[must_use]
    pub fn guest(&self) -> String {
        guest::gets(self)
    }

    /// Returns true if [`Self::guest`] holds only with a gate in the VMM. Without a gate the guest
    /// gets #GP.
    #[must_use]
    pub fn needs_gate(&self) -> bool {
        let is_plain = self.action == Action::Deny && !self.is_let_through();
        self.decision.verdict == Verdict::Deny && !is_plain
    }

    /// Returns true if a gate in the VMM has to answer the access in the case that KVM does not know the
    /// register. Without a gate the guest gets #GP.
    #[must_use]
    pub fn needs_gate_if_unknown(&self) -> bool {
        let answer = self.unknown();
        answer.is_some_and(|answer| answer != UnknownAction::Deny)
    }

    /// Returns the policy's answer (`unknown`) for the case that the access reaches KVM, and KVM
    /// does not know the register. `None`: the access does not reach KVM's registers, or KVM asks
    /// no filter about it (S3.1, S5.1).
    #[must_use]
    pub fn unknown(&self) -> Option<UnknownAction> {
        let unknown = &self.settings.unknown;
        match self.action {
            _ if self.by == DecidedBy::Kvm => None,
            Action::Allow => Some(match self.access {
                Access::Read => unknown.read,
                Access::Write => unknown.write,
            }),
            // `unknown` applies only to accesses that no entry refuses. In audit mode, too, an
            // access that an entry refuses does not get the answer of `unknown`.
            _ if self.is_let_through() => Some(UnknownAction::Deny),
            _ => None,
        }
    }

    /// Returns true if the policy refuses the access, but lets it through because its mode is
    /// audit. MSR 0xffffffff is an exception: no filter can let this MSR alone through (S3.5).
    fn is_let_through(&self) -> bool {
        let audits = self.settings.mode == Mode::Audit;
        audits && self.action.refuses() && self.index != MsrIndex::MAX
    }

    /// Returns true if the policy may answer this access with #GP or end the guest.
    fn may_refuse(&self) -> bool {
        self.action.refuses() || self.access == Access::Write && self.action.refuses_some()
    }

    /// Returns the kernel's report of the access, for a VM with this reason mask.
    #[must_use]
    pub fn reported(&self, mask: ReasonMask) -> Reported {
        match self.decision.verdict {
            Verdict::Allow => Reported::Nothing,
            Verdict::Deny => self.failed(mask, ExitReason::Filter),
        }
    }

    /// Returns the kernel's report for the case that the filter lets the access through and KVM
    /// does not know the register. `None` if [`Self::unknown`] is `None`.
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

    /// Returns the accesses of this MSR and direction that become events.
    #[must_use]
    pub fn events(&self) -> Events {
        events::of_known(self)
    }

    /// Returns the accesses that become events if KVM does not know the register, in a VM with this
    /// reason mask. `None`: the kernel reports no such access to user space.
    #[must_use]
    pub fn events_if_unknown(&self, mask: ReasonMask) -> Option<Events> {
        events::of_unknown(self, mask)
    }

    /// Returns the log level of accesses that reach KVM, if KVM does not know the register.
    #[must_use]
    pub fn unknown_log(&self) -> Log {
        self.settings.unknown.log.unwrap_or(self.log)
    }

    /// Returns the extent to which the decision is enforced, and the accesses that bypass it.
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
