//! What holds for a whole policy, beside its default.

use core::fmt;

/// Whether refusals are carried out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// They are.
    #[default]
    Enforce,
    /// Nothing is refused; what would have been is recorded.
    Audit,
}

/// Which accesses become events.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Log {
    /// None.
    None,
    /// Refusals.
    #[default]
    Denied,
    /// Of each MSR and direction the first of the VM.
    First,
    /// All: only where forwarding is sound.
    All,
}

impl Log {
    /// The word for it in a policy.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Denied => "denied",
            Self::First => "first",
            Self::All => "all",
        }
    }
}

/// What becomes of an MSR that KVM does not know.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Unknown {
    /// Of a read; `Deny` is #GP.
    pub read: UnknownAction,
    /// Of a write.
    pub write: UnknownAction,
    /// What it says of logging, if it says something.
    pub log: Option<Log>,
}

/// What becomes of one access to an MSR that KVM does not know.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum UnknownAction {
    /// #GP, as KVM does it.
    #[default]
    Deny,
    /// A read gives this value.
    Value(u64),
    /// A write succeeds and does nothing.
    Ignore,
}

/// `[device.microcode]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Microcode {
    /// The revision that the guest reads.
    pub revision: u32,
    /// What becomes of an update.
    pub update: Update,
}

/// What becomes of a microcode update.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Update {
    /// Its revision is the guest's from then on, if its header is sound.
    Accept,
    /// Nothing, and the guest is not told.
    Ignore,
    /// #GP.
    Deny,
}

impl Update {
    /// The word for it in a policy.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Accept => "accept",
            Self::Ignore => "ignore",
            Self::Deny => "deny",
        }
    }
}

/// `revision 0x2b000000, update accept`.
impl fmt::Display for Microcode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { revision, update } = self;
        write!(f, "revision {revision:#x}, update {}", update.word())
    }
}
