//! What the lines of a trace say together of one register of KVM's.

use msrgate_program::Mask;

/// The bits of a register that a policy lets no write change, as far as a trace shows them.
///
/// A trace does not say which vCPU accessed the register, nor what it held before. So only accesses that
/// all agree are proof that none of them would be refused.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Held {
    /// No access yet.
    #[default]
    Unknown,
    /// All accesses agree with this value.
    Value(u64),
    /// Two accesses differ, or the first one is a write that tells nothing of what was there before.
    Differs,
}

impl Held {
    /// After a read of `value`, where writes may change the bits of `mask`.
    pub(super) const fn read(self, mask: Mask, value: u64) -> Self {
        match self {
            Self::Unknown => Self::Value(value),
            Self::Value(held) if mask.apply(held, value).is_some() => self,
            Self::Value(_) | Self::Differs => Self::Differs,
        }
    }

    /// After a write, where writes may change the bits of `mask`.
    pub(super) const fn write(self, mask: Mask, value: Option<u64>) -> Self {
        match (self, value) {
            (Self::Value(held), Some(value)) if mask.apply(held, value).is_some() => self,
            _ => Self::Differs,
        }
    }

    /// After a write, where the first one stands.
    pub(super) const fn pin(self, value: Option<u64>) -> Self {
        match (self, value) {
            (Self::Unknown, Some(value)) => Self::Value(value),
            (Self::Value(held), Some(value)) if held == value => self,
            _ => Self::Differs,
        }
    }
}
