//! Accesses that user space forwards to the register that KVM keeps.

use msrgate_filter::MsrIndex;

use super::Disposition;
use crate::action::{Mask, Outside};
use crate::forward::Row;
use crate::settings::Mode;

/// An access of the guest that the gate is to forward, with `KVM_GET_MSRS` and `KVM_SET_MSRS`, to the
/// register that KVM keeps.
///
/// The gate must not forward while the vCPU runs a nested guest: `KVM_GET_MSRS` and `KVM_SET_MSRS` would
/// then access the register of the wrong guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Forwarded {
    pub(super) index: MsrIndex,
    /// The position of the register in the forward list, the list of the registers to which a gate
    /// may forward accesses.
    pub(super) row: Row,
    pub(super) what: What,
    pub(super) mode: Mode,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum What {
    /// A read of the register.
    Read,
    /// A write that stores the guest's value unchanged.
    Write(u64),
    /// A write that may change only the bits of a mask.
    Mask { value: u64, mask: Mask },
    /// A write that cannot clear the sticky `bits`: those that are 1 in the register stay 1.
    Sticky { value: u64, bits: u64 },
    /// A write to a pinned register: the first write, whose value becomes the pinned value at the
    /// position `place`, or a later write of the pinned value.
    Pin { value: u64, place: usize },
    /// A write of this value, which is not the pinned one, to a pinned register. Only audit mode lets
    /// such a write through.
    Repinned(u64),
}

/// The step by which the gate completes a forwarded access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Carried {
    /// The gate answers the read with this value, which the gate has read from the register.
    Value(u64),
    /// The gate writes this value to the register. If KVM refuses the value, the guest gets #GP.
    Set(u64),
    /// The gate writes nothing, and the guest gets #GP.
    Fault,
}

impl Forwarded {
    /// The MSR that the guest accesses.
    #[must_use]
    pub const fn index(&self) -> MsrIndex {
        self.index
    }

    /// Returns true if the gate has to read the register before it calls [`Self::carry`].
    #[must_use]
    pub const fn needs_current(&self) -> bool {
        matches!(
            self.what,
            What::Read | What::Mask { .. } | What::Sticky { .. }
        )
    }

    /// Returns the step that completes the access, and the disposition of the access if that step
    /// succeeds. `current` is the value that the register has now; `current` is ignored unless
    /// [`Self::needs_current`] returns true.
    #[must_use]
    pub fn carry(&self, current: u64) -> (Carried, Disposition) {
        let (value, disposition) = match self.what {
            What::Read => return (Carried::Value(current), Disposition::Allowed),
            What::Write(value) => (value, Disposition::Allowed),
            What::Pin { value, .. } => (value, Disposition::Pinned),
            What::Repinned(value) => (value, Disposition::WouldDeny),
            What::Sticky { value, bits } => (value | current & bits, Disposition::Sticky),
            What::Mask { value, mask } => match (mask.apply(current, value), self.mode) {
                (Some(value), _) => (value, Disposition::Masked),
                (None, Mode::Audit) => (value, Disposition::WouldDeny),
                (None, Mode::Enforce) => return (Carried::Fault, Disposition::Denied),
            },
        };
        if self.row.forward().write.permits(value) {
            (Carried::Set(value), disposition)
        } else {
            // The guest's own write of this value would fault too.
            (Carried::Fault, Disposition::Denied)
        }
    }

    /// Returns the pin to set after a guest's first write has reached a register with the action
    /// `pin`: the position of the pin in the vCPU's state, and the pinned value.
    #[inline]
    pub(super) const fn pins(&self) -> Option<(usize, u64)> {
        match self.what {
            What::Pin { value, place } => Some((place, value)),
            _ => None,
        }
    }
}

impl Mask {
    /// Returns the value that a register with the value `current` gets by a guest's write of
    /// `value`. `None`: the write gets #GP, and the register keeps its value.
    #[must_use]
    pub const fn apply(self, current: u64, value: u64) -> Option<u64> {
        let outside = (current ^ value) & !self.bits;
        match self.outside {
            Outside::Deny if outside != 0 => None,
            Outside::Deny | Outside::Keep => Some(value & self.bits | current & !self.bits),
        }
    }
}
