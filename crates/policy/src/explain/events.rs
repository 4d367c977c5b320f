//! The accesses that become events.

use std::fmt;

use msrgate_filter::{Access, ReasonMask};
use msrgate_program::{Action, DecidedBy};

use super::{Explanation, Reported};
use crate::policy::{Log, Mode, UnknownAction, Update};

/// The accesses of one MSR in one direction that become events, if a gate enforces the policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Events {
    /// No access becomes an event, because KVM asks neither the filter nor the VMM.
    NotAsked,
    /// No access becomes an event, because the policy logs none.
    None,
    /// No access becomes an event, because only refusals do, and no access is refused.
    NoRefusals,
    /// The VM's first access becomes an event.
    First,
    /// The VM's first access becomes two events: KVM's filter lets it through, and then KVM refuses it.
    FirstTwice,
    /// The first access that is refused becomes an event, and the first that is not.
    FirstAndFirstRefused,
    /// The first access becomes an event that audit mode lets through and the policy would refuse, and the first
    /// that the policy would not refuse.
    FirstAndFirstWouldBeRefused,
    /// The first access becomes an event that audit mode lets through and the policy would refuse.
    FirstWouldBeRefused,
    /// Each access that is refused becomes an event.
    EachRefused,
    /// Each access becomes an event.
    Each,
    /// Each access becomes an event, and the VM's first access becomes two.
    EachAndFirst,
}

/// Writes the accesses in words, without a full stop.
impl fmt::Display for Events {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotAsked => "none: KVM asks neither filter nor VMM",
            Self::None => "none",
            Self::NoRefusals => "none: only refusals are logged",
            Self::First => "one for the first access by the VM",
            Self::FirstTwice => "two for the first access by the VM",
            Self::FirstAndFirstRefused => {
                "one for the first access that is refused, and one for the first that is not"
            }
            Self::FirstAndFirstWouldBeRefused => {
                "one for the first access that would be refused, and one for the first that would not"
            }
            Self::FirstWouldBeRefused => "one for the first access that would be refused",
            Self::EachRefused => "one for each access that is refused",
            Self::Each => "one for each access",
            Self::EachAndFirst => {
                "one for each access, and another one for the first access by the VM"
            }
        })
    }
}

/// The accesses that are refused, by the policy or by what answers them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Refused {
    Never,
    Some,
    Always,
}

/// Returns the accesses that become events if KVM knows the register.
pub(super) fn of_known(explanation: &Explanation<'_>) -> Events {
    let (action, mode) = (&explanation.action, explanation.settings.mode);
    if explanation.by == DecidedBy::Kvm {
        return Events::NotAsked;
    }
    // The end of a VM and the findings of audit mode become events at any level.
    if explanation.is_let_through() {
        return Events::First;
    }
    if *action == Action::Kill && mode == Mode::Enforce {
        return Events::Each;
    }
    let is_audited =
        mode == Mode::Audit && explanation.access == Access::Write && action.refuses_some();
    match (explanation.log, refused(explanation)) {
        (Log::All, _) | (Log::Denied, Refused::Always) => Events::Each,
        (Log::First, _) if is_audited => Events::FirstAndFirstWouldBeRefused,
        (Log::First, Refused::Some) => Events::FirstAndFirstRefused,
        (Log::First, Refused::Never | Refused::Always) => Events::First,
        (Log::None | Log::Denied, _) if is_audited => Events::FirstWouldBeRefused,
        (Log::None, _) => Events::None,
        (Log::Denied, Refused::Never) => Events::NoRefusals,
        (Log::Denied, Refused::Some) => Events::EachRefused,
    }
}

fn refused(explanation: &Explanation<'_>) -> Refused {
    let microcode = explanation.settings.microcode;
    match (&explanation.action, explanation.access) {
        (Action::Deny | Action::Kill, _) | (Action::Device(_), Access::Read) => Refused::Always,
        (Action::Device(_), Access::Write) => match microcode.map(|device| device.update) {
            Some(Update::Deny) => Refused::Always,
            Some(Update::Ignore) => Refused::Never,
            // The guest's memory may not have the update's header.
            Some(Update::Accept) | None => Refused::Some,
        },
        (Action::Handler(_), _) => Refused::Some,
        // KVM may refuse a forwarded value.
        (action, _) if action.needs_forwarding() => Refused::Some,
        (action, Access::Write) if action.refuses_some() => Refused::Some,
        _ => Refused::Never,
    }
}

/// Returns the accesses that become events if the filter lets them through and KVM does not know the
/// register. `None`: the kernel does not report such an access to user space.
pub(super) fn of_unknown(explanation: &Explanation<'_>, mask: ReasonMask) -> Option<Events> {
    let Some(Reported::Exit(..)) = explanation.reported_unknown(mask) else {
        return None;
    };
    let is_refused = explanation.unknown() == Some(UnknownAction::Deny);
    let at_unknown = match explanation.unknown_log() {
        Log::All => Events::Each,
        Log::First => Events::First,
        Log::Denied if is_refused => Events::Each,
        Log::Denied => Events::NoRefusals,
        Log::None => Events::None,
    };
    // A logged or audited access exits first because of the filter, and then because KVM does not know the
    // register. Only a logged one was no refusal at its first exit.
    let is_refused_later = is_refused && !explanation.is_let_through();
    Some(match (of_known(explanation), at_unknown) {
        (Events::First, Events::Each) => Events::EachAndFirst,
        (Events::First, Events::First) if is_refused_later => Events::FirstTwice,
        (Events::Each, _) | (_, Events::Each) => Events::Each,
        (Events::First, _) | (_, Events::First) => Events::First,
        (_, at_unknown) => at_unknown,
    })
}
