//! The answer to an exit, and the choice of exits that become events.

use msrgate_filter::{Access, Exit, ExitReason, MsrIndex, Reply};

use super::forwarded::What;
use super::responder::is_seen_first;
use super::{Answer, Disposition, Forwarded, Responder, Response, VcpuState};
use crate::action::{Action, Emulated};
use crate::forward;
use crate::settings::{Log, Mode, UnknownAction};

impl Responder {
    /// Returns the answer to an exit of the vCPU whose emulated registers and pins are `state`.
    #[must_use]
    pub fn respond(&self, state: &mut VcpuState, exit: &Exit) -> Answer<'_> {
        let rules = self.variant().rules();
        let (outcome, by) = rules.at_again(&mut state.hints, exit.index, exit.access);
        let (response, disposition) = match &outcome.action {
            Action::Allow => self.allowed(state, outcome.log, exit),
            Action::Deny => self.refused(Disposition::Denied, Response::Reply(Reply::FAULT), exit),
            Action::Kill => self.refused(Disposition::Killed, Response::Kill, exit),
            Action::Value(value) => (Response::Reply(Reply::value(*value)), Disposition::Value),
            Action::Ignore => (Response::Reply(Reply::DONE), Disposition::Ignored),
            Action::Register(register) => self.register(state, *register, exit),
            Action::Handler(name) => (Response::Handler(name), Disposition::Handled),
            Action::Device(device) => (Response::Device(*device), Disposition::Device),
            Action::Mask(mask) => {
                let (value, mask) = (exit.data, *mask);
                self.forward(state, exit, What::Mask { value, mask }, Disposition::Masked)
            }
            Action::Sticky(bits) => {
                let (value, bits) = (exit.data, *bits);
                self.forward(
                    state,
                    exit,
                    What::Sticky { value, bits },
                    Disposition::Sticky,
                )
            }
            Action::Pin => self.pin_write(state, exit),
        };
        Answer {
            response,
            disposition,
            outcome,
            by,
        }
    }

    /// Answers the exit of an access that the program lets KVM handle.
    fn allowed(&self, state: &VcpuState, log: Log, exit: &Exit) -> (Response<'_>, Disposition) {
        match exit.reason {
            ExitReason::Invalid => (Response::Reply(Reply::FAULT), Disposition::Denied),
            ExitReason::Unknown => self.unknown(exit),
            // No range of a filter can contain this MSR (S3.5), so the gate cannot open the filter
            // for it. KVM does not know the MSR.
            ExitReason::Filter if exit.index == MsrIndex::MAX => self.unknown(exit),
            ExitReason::Filter
                if is_carried_for_log(log, exit.index)
                    && state.may_forward(exit.index).is_some() =>
            {
                let what = match exit.access {
                    Access::Read => What::Read,
                    Access::Write => What::Write(exit.data),
                };
                self.forward(state, exit, what, Disposition::Allowed)
            }
            ExitReason::Filter if is_seen_first(log) => (Response::Open, Disposition::Allowed),
            ExitReason::Filter => (Response::Rewind, Disposition::Allowed),
        }
    }

    /// Answers an access to an MSR that KVM does not know.
    fn unknown(&self, exit: &Exit) -> (Response<'_>, Disposition) {
        let unknown = &self.program().settings().unknown;
        let action = match exit.access {
            Access::Read => unknown.read,
            Access::Write => unknown.write,
        };
        match action {
            UnknownAction::Deny => (Response::Reply(Reply::FAULT), Disposition::Denied),
            UnknownAction::Value(value) => {
                (Response::Reply(Reply::value(value)), Disposition::Unknown)
            }
            UnknownAction::Ignore => (Response::Reply(Reply::value(0)), Disposition::Unknown),
        }
    }

    /// Answers an access that the policy refuses. In audit mode KVM handles the access, and the
    /// refusal is only recorded.
    fn refused<'p>(
        &self,
        disposition: Disposition,
        response: Response<'p>,
        exit: &Exit,
    ) -> (Response<'p>, Disposition) {
        match (self.mode(), exit.reason) {
            (Mode::Enforce, _) => (response, disposition),
            (Mode::Audit, ExitReason::Filter) if exit.index != MsrIndex::MAX => {
                let would = match disposition {
                    Disposition::Killed => Disposition::WouldKill,
                    _ => Disposition::WouldDeny,
                };
                (Response::Open, would)
            }
            // KVM itself refused the access after the gate had opened the kernel's filter, or no filter
            // can be opened for this MSR (S3.5).
            (Mode::Audit, _) => (Response::Reply(Reply::FAULT), Disposition::Denied),
        }
    }

    fn register<'p>(
        &self,
        state: &mut VcpuState,
        register: Emulated,
        exit: &Exit,
    ) -> (Response<'p>, Disposition) {
        let place = self.cell(exit.index).map(|(at, _)| at);
        let Some(cell) = place.and_then(|at| state.cells.get_mut(at)) else {
            return (Response::Reply(Reply::FAULT), Disposition::Denied);
        };
        if exit.access == Access::Read {
            return (Response::Reply(Reply::value(*cell)), Disposition::Register);
        }
        match (register.mask.apply(*cell, exit.data), self.mode()) {
            (Some(value), _) => {
                *cell = value;
                (Response::Reply(Reply::DONE), Disposition::Register)
            }
            (None, Mode::Enforce) => (Response::Reply(Reply::FAULT), Disposition::Denied),
            (None, Mode::Audit) => {
                *cell = exit.data;
                (Response::Reply(Reply::DONE), Disposition::WouldDeny)
            }
        }
    }

    fn pin_write<'p>(&self, state: &VcpuState, exit: &Exit) -> (Response<'p>, Disposition) {
        let Some(place) = self.pin(exit.index) else {
            return (Response::Reply(Reply::FAULT), Disposition::Denied);
        };
        let value = exit.data;
        match (state.pins.get(place).copied().flatten(), self.mode()) {
            (Some(pinned), Mode::Enforce) if pinned != value => {
                (Response::Reply(Reply::FAULT), Disposition::Denied)
            }
            (Some(pinned), Mode::Audit) if pinned != value => {
                self.forward(state, exit, What::Repinned(value), Disposition::WouldDeny)
            }
            // A write of the pinned value is forwarded too: the pin records the guest's write, but
            // the register may have another value by now, for example a nested guest's.
            _ => self.forward(state, exit, What::Pin { value, place }, Disposition::Pinned),
        }
    }

    fn forward<'p>(
        &self,
        state: &VcpuState,
        exit: &Exit,
        what: What,
        disposition: Disposition,
    ) -> (Response<'p>, Disposition) {
        let Some(row) = state.may_forward(exit.index) else {
            // The vCPU's CPUID lacks the register, so KVM would refuse the guest's own access too.
            return (Response::Reply(Reply::FAULT), Disposition::Denied);
        };
        let access = Forwarded {
            index: exit.index,
            row,
            what,
            mode: self.mode(),
        };
        (Response::Forward(access), disposition)
    }

    /// Returns the log level that the policy has for an exit.
    #[inline]
    #[must_use]
    pub fn log(&self, exit: &Exit, answer: &Answer<'_>) -> Log {
        match (exit.reason, self.program().settings().unknown.log) {
            (ExitReason::Unknown, Some(log)) => log,
            _ => answer.outcome.log,
        }
    }

    /// Returns true if an exit becomes an event. `disposition` is the final disposition of the
    /// access.
    ///
    /// `is_first` returns true if this is the VM's first access to this MSR in this direction, among
    /// those that are refused if `disposition` is a refusal, and otherwise among the others.
    /// `is_first` is called only if the result depends on it.
    #[inline]
    #[must_use]
    pub fn is_event(
        &self,
        exit: &Exit,
        answer: &Answer<'_>,
        disposition: Disposition,
        is_first: impl FnOnce() -> bool,
    ) -> bool {
        let log = self.log(exit, answer);
        // An access that ends the VM, and an access that audit mode lets through although the
        // policy refuses it, become events whatever the policy's `log` is.
        match (disposition, log) {
            (Disposition::Killed, _) | (_, Log::All) => true,
            (Disposition::WouldDeny | Disposition::WouldKill, _) | (_, Log::First) => is_first(),
            (disposition, Log::Denied) => disposition.is_refusal(),
            (_, Log::None) => false,
        }
    }
}

/// Returns true if the gate has to forward each allowed access to this register: `log` makes each
/// access an event, and the forward list contains the register.
fn is_carried_for_log(log: Log, index: MsrIndex) -> bool {
    log == Log::All && forward::row(index).is_some()
}
