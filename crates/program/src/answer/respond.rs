//! From an exit to an answer, and whether that becomes an event.

use msrgate_filter::{Access, Exit, ExitReason, MsrIndex, Reply};

use super::forwarded::What;
use super::responder::is_seen_first;
use super::{Answer, Deed, Forwarded, Responder, Step, VcpuState};
use crate::action::{Action, Emulated};
use crate::forward;
use crate::settings::{Log, Mode, UnknownAction};

impl Responder {
    /// What is to be done about an exit of a vCPU in this state.
    #[must_use]
    pub fn respond(&self, state: &mut VcpuState, exit: &Exit) -> Answer<'_> {
        let rules = self.variant().rules();
        let (outcome, by) = rules.at_again(&mut state.hints, exit.index, exit.access);
        let (step, deed) = match &outcome.action {
            Action::Allow => self.allowed(state, outcome.log, exit),
            Action::Deny => self.refused(Deed::Denied, Step::Reply(Reply::FAULT), exit),
            Action::Kill => self.refused(Deed::Killed, Step::Kill, exit),
            Action::Value(value) => (Step::Reply(Reply::value(*value)), Deed::Value),
            Action::Ignore => (Step::Reply(Reply::DONE), Deed::Ignored),
            Action::Register(register) => self.register(state, *register, exit),
            Action::Handler(name) => (Step::Handler(name), Deed::Handled),
            Action::Device(device) => (Step::Device(*device), Deed::Device),
            Action::Mask(mask) => {
                let (value, mask) = (exit.data, *mask);
                self.forward(state, exit, What::Mask { value, mask }, Deed::Masked)
            }
            Action::Sticky(bits) => {
                let (value, bits) = (exit.data, *bits);
                self.forward(state, exit, What::Sticky { value, bits }, Deed::Sticky)
            }
            Action::Pin => self.pin_write(state, exit),
        };
        Answer {
            step,
            deed,
            outcome,
            by,
        }
    }

    /// An access that the program lets KVM handle, and that came here all the same.
    fn allowed(&self, state: &VcpuState, log: Log, exit: &Exit) -> (Step<'_>, Deed) {
        match exit.reason {
            ExitReason::Invalid => (Step::Reply(Reply::FAULT), Deed::Denied),
            ExitReason::Unknown => self.unknown(exit),
            // No filter opens for it but by its default (S3.5), and KVM has no such MSR.
            ExitReason::Filter if exit.index == MsrIndex::MAX => self.unknown(exit),
            ExitReason::Filter
                if is_carried_for_log(log, exit.index)
                    && state.may_forward(exit.index).is_some() =>
            {
                let what = match exit.access {
                    Access::Read => What::Read,
                    Access::Write => What::Write(exit.data),
                };
                self.forward(state, exit, what, Deed::Allowed)
            }
            ExitReason::Filter if is_seen_first(log) => (Step::Open, Deed::Allowed),
            ExitReason::Filter => (Step::Rewind, Deed::Allowed),
        }
    }

    /// What becomes of an MSR that KVM does not know.
    fn unknown(&self, exit: &Exit) -> (Step<'_>, Deed) {
        let unknown = &self.program().settings().unknown;
        let action = match exit.access {
            Access::Read => unknown.read,
            Access::Write => unknown.write,
        };
        match action {
            UnknownAction::Deny => (Step::Reply(Reply::FAULT), Deed::Denied),
            UnknownAction::Value(value) => (Step::Reply(Reply::value(value)), Deed::Unknown),
            UnknownAction::Ignore => (Step::Reply(Reply::value(0)), Deed::Unknown),
        }
    }

    /// A refusal, which an audit only records: KVM is then to handle the access.
    fn refused<'p>(&self, deed: Deed, step: Step<'p>, exit: &Exit) -> (Step<'p>, Deed) {
        match (self.mode(), exit.reason) {
            (Mode::Enforce, _) => (step, deed),
            (Mode::Audit, ExitReason::Filter) if exit.index != MsrIndex::MAX => {
                let would = match deed {
                    Deed::Killed => Deed::WouldKill,
                    _ => Deed::WouldDeny,
                };
                (Step::Open, would)
            }
            // The filter had opened for it, and KVM refused it.
            (Mode::Audit, _) => (Step::Reply(Reply::FAULT), Deed::Denied),
        }
    }

    fn register<'p>(
        &self,
        state: &mut VcpuState,
        register: Emulated,
        exit: &Exit,
    ) -> (Step<'p>, Deed) {
        let place = self.cell(exit.index).map(|(at, _)| at);
        let Some(cell) = place.and_then(|at| state.cells.get_mut(at)) else {
            return (Step::Reply(Reply::FAULT), Deed::Denied);
        };
        if exit.access == Access::Read {
            return (Step::Reply(Reply::value(*cell)), Deed::Register);
        }
        match (register.mask.apply(*cell, exit.data), self.mode()) {
            (Some(value), _) => {
                *cell = value;
                (Step::Reply(Reply::DONE), Deed::Register)
            }
            (None, Mode::Enforce) => (Step::Reply(Reply::FAULT), Deed::Denied),
            (None, Mode::Audit) => {
                *cell = exit.data;
                (Step::Reply(Reply::DONE), Deed::WouldDeny)
            }
        }
    }

    fn pin_write<'p>(&self, state: &VcpuState, exit: &Exit) -> (Step<'p>, Deed) {
        let Some(place) = self.pin(exit.index) else {
            return (Step::Reply(Reply::FAULT), Deed::Denied);
        };
        let value = exit.data;
        match (state.pins.get(place).copied().flatten(), self.mode()) {
            (Some(pinned), Mode::Enforce) if pinned != value => {
                (Step::Reply(Reply::FAULT), Deed::Denied)
            }
            (Some(pinned), Mode::Audit) if pinned != value => {
                self.forward(state, exit, What::Repinned(value), Deed::WouldDeny)
            }
            // One that is equal is carried, too: what is pinned is what the guest wrote, and the register
            // may be another's by now, a nested guest's.
            _ => self.forward(state, exit, What::Pin { value, place }, Deed::Pinned),
        }
    }

    fn forward<'p>(
        &self,
        state: &VcpuState,
        exit: &Exit,
        what: What,
        deed: Deed,
    ) -> (Step<'p>, Deed) {
        let Some(row) = state.may_forward(exit.index) else {
            // The guest has no such register: KVM would refuse it, too.
            return (Step::Reply(Reply::FAULT), Deed::Denied);
        };
        let access = Forwarded {
            index: exit.index,
            row,
            what,
            mode: self.mode(),
        };
        (Step::Forward(access), deed)
    }

    /// Whether an exit becomes an event, where `deed` is what its answer came to in the end.
    /// `is_first` says whether it is the VM's first access of this direction to this MSR; it is asked
    /// only where that matters.
    #[inline]
    #[must_use]
    pub fn is_event(
        &self,
        exit: &Exit,
        answer: &Answer<'_>,
        deed: Deed,
        is_first: impl FnOnce() -> bool,
    ) -> bool {
        let log = match (exit.reason, self.program().settings().unknown.log) {
            (ExitReason::Unknown, Some(log)) => log,
            _ => answer.outcome.log,
        };
        // What ends a VM, and what an audit is for, is said whatever the policy says of its log.
        match (deed, log) {
            (Deed::Killed, _) | (_, Log::All) => true,
            (Deed::WouldDeny | Deed::WouldKill, _) | (_, Log::First) => is_first(),
            (deed, Log::Denied) => deed.is_refusal(),
            (_, Log::None) => false,
        }
    }
}

/// Returns true if an allowed access is carried to its register each time, so that each becomes an event.
fn is_carried_for_log(log: Log, index: MsrIndex) -> bool {
    log == Log::All && forward::row(index).is_some()
}
