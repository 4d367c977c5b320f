//! What can happen to an access, and which of two things is the looser.

use alloc::sync::Arc;
use core::fmt;

use msrgate_filter::{Access, Verdict};

use crate::shown::one_line;

/// What is to happen to an access.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Action {
    /// KVM handles it as if there were no policy.
    Allow,
    /// The guest gets #GP.
    Deny,
    /// The call or the VM ends, with an event.
    Kill,
    /// The VMM's own code of this name answers.
    Handler(Arc<str>),
    /// An emulated device of this name answers.
    Device(Device),
    /// A register in user space, one for each vCPU, answers.
    Register(Emulated),
    /// A read gives this value.
    Value(u64),
    /// A write succeeds and does nothing.
    Ignore,
    /// A write reaches the register, as far as its changes lie in the mask.
    Mask(Mask),
    /// The first write stands until reset.
    Pin,
    /// A write reaches the register; of these bits, those that are set stay set.
    Sticky(u64),
}

/// An emulated device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Device {
    /// Microcode updates: `[device.microcode]`.
    Microcode,
}

/// A register in user space.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Emulated {
    /// What it holds at reset.
    pub reset: u64,
    /// What a write may change.
    pub mask: Mask,
}

/// The bits that a write may change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mask {
    /// 1: may change.
    pub bits: u64,
    /// What a write does that would change another bit.
    pub outside: Outside,
}

/// What becomes of a write that would change bits outside of a mask.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Outside {
    /// #GP.
    #[default]
    Deny,
    /// Those bits keep what they hold.
    Keep,
}

/// How one action compares with another that it would take the place of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Comparison {
    /// It lets the guest do no more.
    NoLooser,
    /// It lets the guest do more.
    Looser,
    /// It lets the guest do something else: neither can be said.
    Different,
}

impl Action {
    /// What the kernel's filter says of it: only what KVM may handle on its own is allowed.
    #[must_use]
    pub const fn verdict(&self) -> Verdict {
        match self {
            Self::Allow => Verdict::Allow,
            _ => Verdict::Deny,
        }
    }

    /// Whether it can happen to accesses of this direction.
    #[must_use]
    pub fn is_for(&self, access: Access) -> bool {
        match self {
            Self::Value(_) => access == Access::Read,
            Self::Ignore | Self::Mask(_) | Self::Pin | Self::Sticky(_) => access == Access::Write,
            _ => true,
        }
    }

    /// Whether user space has to answer the access. The kernel alone can allow and deny.
    #[must_use]
    pub const fn needs_answer(&self) -> bool {
        !matches!(self, Self::Allow | Self::Deny)
    }

    /// Whether no access is carried out, nor answered: the guest gets #GP, or ends.
    #[must_use]
    pub const fn refuses(&self) -> bool {
        matches!(self, Self::Deny | Self::Kill)
    }

    /// Whether some accesses get #GP and others do not, by what they write.
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

    /// Whether user space has to carry the access to the real register.
    #[must_use]
    pub const fn needs_forwarding(&self) -> bool {
        matches!(self, Self::Mask(_) | Self::Pin | Self::Sticky(_))
    }

    /// Whether answers depend on a state that user space keeps, and that is in no VMM's migration
    /// stream.
    #[must_use]
    pub const fn keeps_state(&self) -> bool {
        matches!(self, Self::Register(_) | Self::Device(_) | Self::Pin)
    }

    /// Whether this lets a guest do more than `other` does.
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

    /// How far a guest gets: the further, the looser. Less than another's is
    /// [`Comparison::NoLooser`], more is [`Comparison::Looser`].
    #[must_use]
    pub const fn reach(&self) -> u8 {
        match self {
            Self::Kill => 0,
            Self::Deny => 1,
            // The guest goes on, and the real register is out of its reach.
            Self::Value(_) | Self::Ignore => 2,
            Self::Register(_) => 3,
            Self::Device(_) | Self::Handler(_) => 4,
            // It reaches part of the real register.
            Self::Mask(_) | Self::Pin | Self::Sticky(_) => 5,
            Self::Allow => 6,
        }
    }

    /// The word for it in a policy.
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

/// As a policy writes it on the right of `read =` or `write =`, with the name of a handler as [`one_line`].
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

    /// From the strictest up.
    #[test]
    fn what_lets_a_guest_get_further_is_looser() {
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
    fn a_mask_within_a_mask_is_no_looser() {
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
