//! The filter and the mask that an unmodified VMM sets itself, in addition to those of the gate.
//!
//! A library that puts a gate into an unmodified VMM intercepts the VMM's ioctls that set a filter and a
//! mask, and passes the filter and the mask to the gate. The kernel has one filter and one mask, which
//! combine the VMM's and the gate's.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use msrgate_filter::{Exit, ExitReason, Filter, ReasonMask, Revision, Verdict};
use msrgate_program::{CompileError, Verdicts};

/// The filter and the mask that a VMM sets itself: see [`Gate::set_beside`](super::Gate::set_beside).
#[derive(Clone, Debug, Default)]
pub struct Beside {
    /// The VMM's filter; `None` if the VMM has set none.
    pub filter: Option<Filter>,
    /// The VMM's mask of exit reasons.
    pub reasons: ReasonMask,
}

/// The effect that the VMM's own filter and mask have on an access that the policy allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Claim {
    /// The VMM's filter allows the access, or the VMM has no filter.
    None,
    /// The VMM's filter denies the access, and the VMM's mask asks for the exit.
    Exit,
    /// The VMM's filter denies the access, and the VMM's mask does not ask for the exit: the guest gets #GP.
    Fault,
}

impl Beside {
    /// Returns the union of the gate's mask `own` and the VMM's mask.
    pub(super) fn reasons_with(&self, own: ReasonMask) -> ReasonMask {
        let bits = own.bits() | self.reasons.bits();
        ReasonMask::from_bits(Revision::Mainline, bits).unwrap_or(own)
    }

    /// Returns the filter that allows an access if both `own` and the VMM's filter allow it.
    pub(super) fn pack(&self, own: &Verdicts) -> Result<Filter, CompileError> {
        match &self.filter {
            None => own.pack(),
            Some(filter) => own.under(filter).pack(),
        }
    }

    /// Returns true if the VMM's mask asks for exits with this reason.
    pub(super) fn asks_for(&self, reason: ExitReason) -> bool {
        self.reasons.contains(Revision::Mainline, reason)
    }

    /// Returns the effect that the VMM's filter and mask have on an access that the policy allows.
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

/// The VMM's own filter and mask that are in force in a VM. Any thread may replace them.
#[derive(Default)]
pub(super) struct CurrentBeside {
    /// The bits of the VMM's mask, which a vCPU reads without the lock. They change only under the lock.
    ///
    /// Relaxed: no other memory access depends on these bits. A vCPU sees the bits in time for the same
    /// reason for which it sees the number of a new program: see `Published::number`.
    reasons: AtomicU64,
    held: Mutex<Arc<Beside>>,
}

impl CurrentBeside {
    pub(super) fn get(&self) -> Arc<Beside> {
        Arc::clone(&self.held.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Returns true if the VMM's mask asks for exits with this reason.
    #[inline]
    pub(super) fn asks_for(&self, reason: ExitReason) -> bool {
        let reasons = self.reasons.load(Ordering::Relaxed);
        let bit = reason.bit(Revision::Mainline);
        bit.is_some_and(|bit| reasons & bit.bits() != 0)
    }

    /// Puts the VMM's filter and mask in `new` in force, and returns the previous ones.
    pub(super) fn replace(&self, new: Arc<Beside>) -> Arc<Beside> {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        self.reasons.store(new.reasons.bits(), Ordering::Relaxed);
        std::mem::replace(&mut held, new)
    }
}
