//! The decision of a policy about the accesses of one MSR in one direction, and about each written
//! value.
//!
//! The gate's own decision is [`Responder::respond`](msrgate_program::answer::Responder::respond).
//! The responder knows the value of the vCPU's register, which no trace shows.

use msrgate_filter::{Access, MsrIndex, Verdict};
use msrgate_program::{Action, Emulated, Forwarding, Log, Mask, Outside, Variant, forward};

use super::Fate;

/// The upper bits of an address, which are all equal in a canonical address with four levels of
/// page tables.
const UPPER: u64 = 0xffff_8000_0000_0000;

/// The decision about all accesses of one MSR in one direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Decision {
    /// Every access has this fate.
    Always(Fate),
    /// Writes to a register in user space.
    Register(Emulated),
    /// Writes that the gate carries unchanged to KVM's register.
    Carried(Fate, Forwarding),
    /// Writes of which only the bits of a mask reach KVM's register.
    Mask(Mask, Forwarding),
    /// Writes to KVM's register, where these bits stay set once they are set.
    Sticky(u64, Forwarding),
    /// Writes to KVM's register, where each vCPU's first write pins the value.
    Pin(Forwarding),
}

impl Decision {
    /// Returns true for writes that the gate carries to KVM's register.
    pub(super) const fn is_carried(self) -> bool {
        !matches!(self, Self::Always(_) | Self::Register(_))
    }

    pub(super) fn of(variant: &Variant, index: MsrIndex, access: Access) -> Self {
        let outcome = variant.rules().at(index, access);
        let write = match forward(index) {
            Some(row) if access == Access::Write => Some(row.write),
            _ => None,
        };
        if variant.filter().decide(index, access).verdict == Verdict::Allow {
            return match write {
                // The gate itself carries every access that becomes an event.
                Some(write) if outcome.log == Log::All => Self::Carried(Fate::Allowed, write),
                _ => Self::Always(Fate::Allowed),
            };
        }
        match (outcome.action, write) {
            (Action::Deny | Action::Kill, _) => Self::Always(Fate::Refused),
            (Action::Register(register), _) if access == Access::Write => Self::Register(*register),
            (Action::Mask(mask), Some(write)) => Self::Mask(*mask, write),
            (Action::Sticky(bits), Some(write)) => Self::Sticky(*bits, write),
            (Action::Pin, Some(write)) => Self::Pin(write),
            // Writes of this MSR cannot be forwarded, so they are refused.
            (Action::Mask(_) | Action::Sticky(_) | Action::Pin, None) => {
                Self::Always(Fate::Refused)
            }
            _ => Self::Always(Fate::Answered),
        }
    }

    /// Returns the fate of a write of this value. `None`: the trace does not have the value. A
    /// write to a pinned register is [`Fate::Answered`], as if it were the first one.
    pub(super) fn fate(self, value: Option<u64>) -> Fate {
        let of_value = |fate: Fate, permitted: bool| if permitted { fate } else { Fate::Refused };
        match (self, value) {
            (
                Self::Always(fate)
                | Self::Carried(fate, Forwarding::Always | Forwarding::Canonical),
                _,
            ) => fate,
            (Self::Register(register), None) if register.mask.outside == Outside::Keep => {
                Fate::Answered
            }
            (_, None) => Fate::Unsure,
            // Bits that no write may change keep their values from reset.
            (Self::Register(register), Some(value)) => {
                let taken = register.mask.apply(register.reset, value);
                of_value(Fate::Answered, taken.is_some())
            }
            (Self::Carried(fate, write), Some(value)) => of_value(fate, write.permits(value)),
            (Self::Pin(write), Some(value)) => of_value(Fate::Answered, write.permits(value)),
            (Self::Sticky(bits, write), Some(value)) => {
                let is_canonical = bits & UPPER == 0;
                of_value(merged(write, is_canonical), write.permits(value))
            }
            (Self::Mask(mask, write), Some(value)) => of_mask(mask, write, value),
        }
    }
}

fn of_mask(mask: Mask, write: Forwarding, value: u64) -> Fate {
    let written = match mask.outside {
        Outside::Deny => value,
        Outside::Keep => value & mask.bits,
    };
    if !write.permits(written) {
        return Fate::Refused;
    }
    match mask.outside {
        Outside::Deny if mask.bits != u64::MAX => Fate::Unsure,
        Outside::Deny => Fate::Answered,
        Outside::Keep => {
            let upper = mask.bits & UPPER;
            merged(write, upper == 0 || upper == UPPER)
        }
    }
}

/// Returns the fate of a value that mixes bits of the write with bits of the register.
const fn merged(write: Forwarding, is_canonical: bool) -> Fate {
    match write {
        Forwarding::Canonical if !is_canonical => Fate::Unsure,
        _ => Fate::Answered,
    }
}
