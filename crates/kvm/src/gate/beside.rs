//! The filter and the mask that an unmodified VMM has asked for itself, beside the gate's.
//!
//! A library that puts a gate into somebody else's VMM takes that VMM's requests for a filter and a mask, and gives
//! them to the gate. The kernel has one filter and one mask: those of both.

use std::sync::{Arc, Mutex, PoisonError};

use msrgate_filter::{Exit, ExitReason, Filter, ReasonMask, Revision, Verdict};
use msrgate_program::{CompileError, Verdicts};

/// The filter and the mask that a VMM has asked for itself: see [`Gate::set_beside`](super::Gate::set_beside).
#[derive(Clone, Debug, Default)]
pub struct Beside {
    /// Its filter.
    pub filter: Option<Filter>,
    /// Its mask.
    pub reasons: ReasonMask,
}

/// Who an access is for that the policy lets through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Claim {
    /// The VMM does not speak of it.
    None,
    /// The VMM's filter refuses it, and its mask asks for the exit.
    Exit,
    /// The VMM's filter refuses it, and its mask does not ask: the guest gets #GP.
    Fault,
}

impl Beside {
    /// The mask for both.
    pub(super) fn reasons_with(&self, own: ReasonMask) -> ReasonMask {
        let bits = own.bits() | self.reasons.bits();
        ReasonMask::from_bits(Revision::Mainline, bits).unwrap_or(own)
    }

    /// The filter for both.
    pub(super) fn pack(&self, own: &Verdicts) -> Result<Filter, CompileError> {
        match &self.filter {
            None => own.pack(),
            Some(filter) => own.under(filter).pack(),
        }
    }

    fn asks_for(&self, reason: ExitReason) -> bool {
        self.reasons.contains(Revision::Mainline, reason)
    }

    /// Tells if the exit is the VMM's before the policy is asked: KVM itself refuses the access.
    #[inline]
    pub(super) fn is_first(&self, exit: &Exit) -> bool {
        exit.reason != ExitReason::Filter && self.asks_for(exit.reason)
    }

    /// Whose an access is that the policy lets through.
    pub(super) fn claim(&self, exit: &Exit) -> Claim {
        let decides = |filter: &Filter| filter.decide(exit.index, exit.access).verdict;
        match &self.filter {
            Some(filter) if decides(filter) == Verdict::Deny => {
                if self.asks_for(ExitReason::Filter) {
                    Claim::Exit
                } else {
                    Claim::Fault
                }
            }
            _ => Claim::None,
        }
    }
}

/// The [`Beside`] of a VM, replaced from any thread.
#[derive(Default)]
pub(super) struct CurrentBeside(Mutex<Arc<Beside>>);

impl CurrentBeside {
    pub(super) fn get(&self) -> Arc<Beside> {
        Arc::clone(&self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Puts another one in force, and gives back the one before.
    pub(super) fn replace(&self, new: Arc<Beside>) -> Arc<Beside> {
        let mut held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::replace(&mut held, new)
    }
}
