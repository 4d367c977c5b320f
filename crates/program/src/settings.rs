//! The settings of a whole policy, besides its default.

use core::fmt;

/// The mode: refusals are carried out, or only become events.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// Refusals are carried out.
    #[default]
    Enforce,
    /// No access is refused. A refusal that enforcing would cause becomes an event.
    Audit,
}

/// The accesses that become events.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Log {
    /// No access becomes an event.
    None,
    /// Each refused access becomes an event.
    #[default]
    Denied,
    /// The first access of the VM to each MSR in each direction becomes an event.
    First,
    /// Every access becomes an event. This is possible only for registers to which the gate can forward
    /// accesses.
    All,
}

impl Log {
    /// The word that stands for this log level in a policy.
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

/// The handling of MSRs that KVM does not know.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Unknown {
    /// The action for a read; `Deny` is #GP.
    pub read: UnknownAction,
    /// The action for a write.
    pub write: UnknownAction,
    /// The accesses to unknown MSRs that become events. `None` stands for the log level of the
    /// MSR's rule.
    pub log: Option<Log>,
}

/// The action for one access to an MSR that KVM does not know.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum UnknownAction {
    /// The guest gets #GP, as from KVM itself.
    #[default]
    Deny,
    /// A read returns this value.
    Value(u64),
    /// A write succeeds without an effect.
    Ignore,
}

/// The microcode device, `[device.microcode]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Microcode {
    /// The revision that the guest reads.
    pub revision: u32,
    /// The handling of an update.
    pub update: Update,
}

/// The handling of a microcode update.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Update {
    /// If the update's header is valid, the guest reads the update's revision from then on.
    Accept,
    /// The update has no effect, and the guest gets no error.
    Ignore,
    /// The guest gets #GP.
    Deny,
}

impl Update {
    /// The word that stands for this handling in a policy.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Accept => "accept",
            Self::Ignore => "ignore",
            Self::Deny => "deny",
        }
    }
}

/// Writes the device as `revision 0x2b000000, update accept`.
impl fmt::Display for Microcode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { revision, update } = self;
        write!(f, "revision {revision:#x}, update {}", update.word())
    }
}
