//! The actions for an access, and the order in which one action is looser than another.

use alloc::sync::Arc;
use core::fmt;

use msrgate_filter::{Access, Verdict};

use crate::shown::one_line;

/// An action of a policy: the handling of a guest's access to an MSR.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Action {
    /// KVM handles the access as if there were no policy.
    Allow,
    /// The access is refused: the guest gets #GP.
    Deny,
    /// The gate tells the VMM to end the VM (in a VM that runs one function for each request of its host: to
    /// end the function that runs now). The access always becomes an event.
    Kill,
    /// The VMM's handler with this name, which is code of the VMM itself, answers the access.
    Handler(Arc<str>),
    /// The emulated device answers the access.
    Device(Device),
    /// An emulated register, which the gate keeps in user space for each vCPU, answers the access.
    Register(Emulated),
    /// A read of the MSR returns this value to the guest.
    Value(u64),
    /// A write to the MSR succeeds and has no effect.
    Ignore,
    /// A write reaches the register if it changes only bits of the mask; [`Outside`] says what
    /// happens otherwise.
    Mask(Mask),
    /// The first write reaches the register and pins the written value until the vCPU is reset. A later
    /// write of another value gets #GP.
    Pin,
    /// A write reaches the register, but the bits of this mask that are 1 in the register stay 1.
    Sticky(u64),
}

/// A device that the gate emulates behind an MSR.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Device {
    /// The device for microcode updates: `[device.microcode]`.
    Microcode,
}

/// An emulated register: a register in user space, one for each vCPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Emulated {
    /// The value that the register has when the vCPU is reset.
    pub reset: u64,
    /// The bits of the register that a write may change.
    pub mask: Mask,
}

/// The bits of a register that a write may change, and the handling of writes that would change other
/// bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mask {
    /// The bits of the mask: 1 for a bit that a write may change.
    pub bits: u64,
    /// The handling of a write that would change a bit outside of the mask.
    pub outside: Outside,
}

/// The handling of a write that would change bits outside of a mask.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Outside {
    /// The guest's write gets #GP and changes no bit.
    #[default]
    Deny,
    /// The write changes the bits in the mask; the bits outside of the mask keep their values.
    Keep,
}

/// The result of comparing an action with the action that it would replace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Comparison {
    /// Under the new action the guest can do the same as under the replaced one, or less.
    NoLooser,
    /// Under the new action the guest can do more than under the replaced one.
    Looser,
    /// Under the new action the guest can do something else, which is neither more nor less.
    Different,
}

impl Action {
    /// Returns the verdict of the kernel's filter for this action: allow only for
    /// [`Action::Allow`].
    #[must_use]
    pub const fn verdict(&self) -> Verdict {
        match self {
            Self::Allow => Verdict::Allow,
            _ => Verdict::Deny,
        }
    }

    /// Returns true if an entry of a policy may have this action for accesses of this direction:
    /// reads, or writes.
    #[must_use]
    pub fn is_for(&self, access: Access) -> bool {
        match self {
            Self::Value(_) => access == Access::Read,
            Self::Ignore | Self::Mask(_) | Self::Pin | Self::Sticky(_) => access == Access::Write,
            _ => true,
        }
    }

    /// Returns true if user space has to answer accesses with this action. The kernel alone can
    /// only allow and deny.
    #[must_use]
    pub const fn needs_answer(&self) -> bool {
        !matches!(self, Self::Allow | Self::Deny)
    }

    /// Returns true if the action refuses every access: the guest gets #GP, or the VMM ends the
    /// guest.
    #[must_use]
    pub const fn refuses(&self) -> bool {
        matches!(self, Self::Deny | Self::Kill)
    }

    /// Returns true if the action refuses some accesses with #GP and accepts others, depending on
    /// the written value.
    #[must_use]
    pub const fn refuses_some(&self) -> bool {
        match self {
            Self::Mask(mask) | Self::Register(Emulated { mask, .. }) => {
                matches!(mask.outside, Outside::Deny) && mask.bits != u64::MAX
            }
            Self::Pin => true,
            _ => false,
        }
    }

    /// Returns true if user space has to forward accesses with this action to the register that KVM
    /// keeps.
    #[must_use]
    pub const fn needs_forwarding(&self) -> bool {
        matches!(self, Self::Mask(_) | Self::Pin | Self::Sticky(_))
    }

    /// Returns true if the result of an access under this action depends on a state that user space
    /// keeps for the vCPU and that no VMM's migration stream contains.
    #[must_use]
    pub const fn keeps_state(&self) -> bool {
        matches!(self, Self::Register(_) | Self::Device(_) | Self::Pin)
    }

    /// Compares how much a guest can do under this action and under `other`, if this action replaced
    /// `other`.
    #[must_use]
    pub fn compared_with(&self, other: &Self) -> Comparison {
        if self == other {
            return Comparison::NoLooser;
        }
        if let (Self::Mask(this), Self::Mask(that)) = (self, other)
            && this.bits & !that.bits == 0
            && (this.outside, that.outside) != (Outside::Keep, Outside::Deny)
        {
            return Comparison::NoLooser;
        }
        match self.reach().cmp(&other.reach()) {
            core::cmp::Ordering::Less => Comparison::NoLooser,
            core::cmp::Ordering::Greater => Comparison::Looser,
            core::cmp::Ordering::Equal => Comparison::Different,
        }
    }

    /// Returns a number that is higher the more a guest can do under this action.
    ///
    /// [`Self::compared_with`] returns [`Comparison::NoLooser`] if the other action has a higher
    /// number, and [`Comparison::Looser`] if the other action has a lower one.
    #[must_use]
    pub const fn reach(&self) -> u8 {
        match self {
            Self::Kill => 0,
            Self::Deny => 1,
            // The guest continues, but cannot reach the real register.
            Self::Value(_) | Self::Ignore => 2,
            Self::Register(_) => 3,
            Self::Device(_) | Self::Handler(_) => 4,
            // The guest reaches a part of the real register.
            Self::Mask(_) | Self::Pin | Self::Sticky(_) => 5,
            Self::Allow => 6,
        }
    }

    /// The word for the action in a policy.
    #[must_use]
    pub const fn word(&self) -> &'static str {
        match self {
            Self::Allow => "allow",
            Self::Deny => "deny",
            Self::Kill => "kill",
            Self::Handler(_) => "handler",
            Self::Device(_) => "device",
            Self::Register(_) => "register",
            Self::Value(_) => "value",
            Self::Ignore => "ignore",
            Self::Mask(_) => "mask",
            Self::Pin => "pin",
            Self::Sticky(_) => "sticky",
        }
    }
}

/// Writes the action as a policy does, on the right of `read =` or `write =`. The name of a handler
/// is written as by [`one_line`].
impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Handler(name) => {
                let name = one_line(name).replace('\\', "\\\\").replace('"', "\\\"");
                write!(f, "{{ handler = \"{name}\" }}")
            }
            Self::Device(device) => write!(f, "{{ device = \"{device}\" }}"),
            Self::Register(register) => {
                write!(
                    f,
                    "{{ register = {{ reset = \"{:#x}\", {} }} }}",
                    register.reset, register.mask
                )
            }
            Self::Value(value) => write!(f, "{{ value = \"{value:#x}\" }}"),
            Self::Mask(mask) => write!(f, "{{ {mask} }}"),
            Self::Sticky(u64::MAX) => f.write_str("\"sticky\""),
            Self::Sticky(bits) => write!(f, "{{ sticky = \"{bits:#x}\" }}"),
            _ => write!(f, "\"{}\"", self.word()),
        }
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Microcode => "microcode",
        })
    }
}

impl fmt::Display for Mask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "mask = \"{:#x}\"", self.bits)?;
        match self.outside {
            Outside::Deny => Ok(()),
            Outside::Keep => f.write_str(", outside = \"keep\""),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn mask(bits: u64, outside: Outside) -> Action {
        Action::Mask(Mask { bits, outside })
    }

    /// In the test's list the actions ascend by what a guest can do under them: `compared_with`
    /// finds each action looser than all actions before it, and no looser than itself and all
    /// actions after it.
    #[test]
    fn actions_compare_as_looser_if_guest_can_do_more_under_them() {
        let ladder = [
            Action::Kill,
            Action::Deny,
            Action::Value(1),
            Action::Device(Device::Microcode),
            Action::Pin,
            Action::Allow,
        ];
        for (low, stricter) in ladder.iter().enumerate() {
            for (high, looser) in ladder.iter().enumerate().skip(low + 1) {
                assert_eq!(
                    looser.compared_with(stricter),
                    Comparison::Looser,
                    "{low} {high}"
                );
                assert_eq!(stricter.compared_with(looser), Comparison::NoLooser);
            }
            assert_eq!(stricter.compared_with(stricter), Comparison::NoLooser);
        }
    }

    #[test]
    fn action_compares_as_no_looser_if_only_its_mask_is_narrower() {
        let wide = mask(0xff, Outside::Deny);
        assert_eq!(
            mask(0x0f, Outside::Deny).compared_with(&wide),
            Comparison::NoLooser
        );
        assert_eq!(
            mask(0x0f, Outside::Keep).compared_with(&wide),
            Comparison::Different
        );
        assert_eq!(
            mask(0x1ff, Outside::Deny).compared_with(&wide),
            Comparison::Different
        );
        assert_eq!(
            Action::Value(1).compared_with(&Action::Value(2)),
            Comparison::Different
        );
    }
}
