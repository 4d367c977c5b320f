//! Accesses to MSR 0xffffffff, which obeys only a filter's default action (S3.5).
//!
//! The kernel's filter may have to deny this MSR although the policy allows it: the filter's default action
//! depends on the rules for other MSRs. KVM has no MSR of this number, so an access that the filter allows
//! is an access to an unknown MSR.

use msrgate_filter::{Exit, ExitReason};
use msrgate_program::answer::Responder;
use msrgate_program::{Action, Mode};

use super::beside::Claim;
use super::error::AnswerError;
use super::exit::{Answering, theirs};
use super::outcome::Outcome;
use super::port::Port;

impl Answering {
    /// Handles an access to MSR 0xffffffff that the policy allows, as the VMM's own filter and mask ask.
    /// Returns `None` if the VMM's filter and mask let the access through.
    #[cold]
    #[inline(never)]
    pub(super) fn last_msr(
        &self,
        program: &Responder,
        port: &mut impl Port,
        exit: &Exit,
    ) -> Option<Result<Outcome, AnswerError>> {
        if !is_left_to_kvm(program, exit) {
            return None;
        }
        let beside = self.shared.beside.get();
        match beside.claim(exit) {
            Claim::Exit => Some(Err(theirs(port, exit))),
            Claim::Fault => {
                port.settle();
                Some(Ok(Outcome::Resume))
            }
            Claim::None => {
                let unknown = Exit {
                    reason: ExitReason::Unknown,
                    ..*exit
                };
                beside.asks_for(unknown.reason).then(|| {
                    port.set_reason(unknown.reason);
                    Err(theirs(port, exit))
                })
            }
        }
    }
}

fn is_left_to_kvm(program: &Responder, exit: &Exit) -> bool {
    match program.variant().rule(exit.index, exit.access).action {
        Action::Allow => true,
        Action::Deny | Action::Kill => program.program().settings().mode == Mode::Audit,
        _ => false,
    }
}
