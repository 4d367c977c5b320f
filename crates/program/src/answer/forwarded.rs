//! Accesses that user space carries to the register that KVM keeps.

use msrgate_filter::MsrIndex;

use super::Disposition;
use crate::action::{Mask, Outside};
use crate::forward::Row;
use crate::settings::Mode;

/// An access to carry to the register by `KVM_GET_MSRS` and `KVM_SET_MSRS`. Never while the vCPU
/// runs a nested guest: the register would be the wrong one's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Forwarded {
    pub(super) index: MsrIndex,
    /// The register's place in the allow-list.
    pub(super) row: Row,
    pub(super) what: What,
    pub(super) mode: Mode,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum What {
    /// A read.
    Read,
    /// A write, as it is.
    Write(u64),
    /// Of a write, the bits of a mask.
    Mask { value: u64, mask: Mask },
    /// A write, of these bits those that are set stay set.
    Sticky { value: u64, bits: u64 },
    /// The first write, and the place among the pins that is to hold it.
    Pin { value: u64, place: usize },
    /// Another write to a pinned register, which an audit lets through.
    Repinned(u64),
}

/// What to carry to the register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Carried {
    /// Nothing: what it holds is the answer to a read.
    Value(u64),
    /// This value. If KVM refuses it, the guest gets #GP.
    Set(u64),
    /// Nothing: the guest gets #GP.
    Fault,
}

impl Forwarded {
    /// The register.
    #[must_use]
    pub const fn index(&self) -> MsrIndex {
        self.index
    }

    /// Whether what the register holds has to be known.
    #[must_use]
    pub const fn needs_current(&self) -> bool {
        matches!(
            self.what,
            What::Read | What::Mask { .. } | What::Sticky { .. }
        )
    }

    /// What to do, where the register holds `current`, which may be anything if it
    /// [need not be known](Self::needs_current).
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
            // The guest's own write of it would be one, too.
            (Carried::Fault, Disposition::Denied)
        }
    }

    /// What is pinned once it has been carried: the place, and the value.
    #[inline]
    pub(super) const fn pins(&self) -> Option<(usize, u64)> {
        match self.what {
            What::Pin { value, place } => Some((place, value)),
            _ => None,
        }
    }
}

impl Mask {
    /// What a register that holds `current` holds after a write of `value`; `None` is a #GP.
    #[must_use]
    pub const fn apply(self, current: u64, value: u64) -> Option<u64> {
        let outside = (current ^ value) & !self.bits;
        match self.outside {
            Outside::Deny if outside != 0 => None,
            Outside::Deny | Outside::Keep => Some(value & self.bits | current & !self.bits),
        }
    }
}
