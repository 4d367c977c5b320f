//! Accesses that user space forwards to the register that KVM keeps.

use msrgate_filter::MsrIndex;

use super::Disposition;
use crate::action::{Mask, Outside};
use crate::forward::Row;
use crate::settings::Mode;

/// An access to forward to the register, by `KVM_GET_MSRS` and `KVM_SET_MSRS`.
///
/// The gate must not forward while the vCPU runs a nested guest: it would reach the register of the
/// wrong guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Forwarded {
    pub(super) index: MsrIndex,
    /// The register's row in the forward list.
    pub(super) row: Row,
    pub(super) what: What,
    pub(super) mode: Mode,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum What {
    /// A read.
    Read,
    /// A write without changes.
    Write(u64),
    /// A write of the bits of a mask.
    Mask { value: u64, mask: Mask },
    /// A write in which those of `bits` that are 1 in the register stay 1.
    Sticky { value: u64, bits: u64 },
    /// The first write, and the position of the pin that will record it.
    Pin { value: u64, place: usize },
    /// A write of another value to a pinned register, which audit mode lets through.
    Repinned(u64),
}

/// The response with which a forwarded access is carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Carried {
    /// No access: the value of the register is the answer to a read.
    Value(u64),
    /// A write of this value. If KVM refuses the value, the guest gets #GP.
    Set(u64),
    /// No access: the guest gets #GP.
    Fault,
}

impl Forwarded {
    /// The register.
    #[must_use]
    pub const fn index(&self) -> MsrIndex {
        self.index
    }

    /// Returns true if the register has to be read first.
    #[must_use]
    pub const fn needs_current(&self) -> bool {
        matches!(
            self.what,
            What::Read | What::Mask { .. } | What::Sticky { .. }
        )
    }

    /// Returns the step and the disposition. `current` is the value of the register; it is ignored
    /// unless [`Self::needs_current`] returns true.
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

    /// Returns the pin to set after the write has been carried out: the position and the value.
    #[inline]
    pub(super) const fn pins(&self) -> Option<(usize, u64)> {
        match self.what {
            What::Pin { value, place } => Some((place, value)),
            _ => None,
        }
    }
}

impl Mask {
    /// Returns the value of a register after a write of `value` to it, if it had the value
    /// `current`. `None` means #GP.
    #[must_use]
    pub const fn apply(self, current: u64, value: u64) -> Option<u64> {
        let outside = (current ^ value) & !self.bits;
        match self.outside {
            Outside::Deny if outside != 0 => None,
            Outside::Deny | Outside::Keep => Some(value & self.bits | current & !self.bits),
        }
    }
}
