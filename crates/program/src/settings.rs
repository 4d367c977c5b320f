//! The settings of a whole policy, except for its default action.

use core::fmt;

/// The mode of a policy: it decides if the policy's refusals are carried out, or are only recorded as
/// events.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// The accesses that the policy refuses are refused: the guest gets #GP, or the VMM ends the VM.
    #[default]
    Enforce,
    /// No access is refused. Each access that the mode `enforce` would refuse becomes an event instead.
    Audit,
}

/// A log level: says which accesses become events.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Log {
    /// No access becomes an event.
    None,
    /// Each refused access becomes an event.
    #[default]
    Denied,
    /// The first access of the VM to each MSR in each direction becomes an event: the first that is refused, and the
    /// first that is not.
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
    /// The action for reads of MSRs that KVM does not know; under [`UnknownAction::Deny`] the guest
    /// gets #GP.
    pub read: UnknownAction,
    /// The action for writes to MSRs that KVM does not know.
    pub write: UnknownAction,
    /// The log level for accesses to MSRs that KVM does not know. `None` stands for the log level of
    /// the rule that covers the MSR.
    pub log: Option<Log>,
}

/// The action for one access to an MSR that KVM does not know.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum UnknownAction {
    /// The guest gets #GP, as from KVM itself.
    #[default]
    Deny,
    /// A read of the MSR returns this value to the guest.
    Value(u64),
    /// A write to the MSR succeeds without an effect.
    Ignore,
}

/// The settings of the emulated microcode device: the section `[device.microcode]` of a policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Microcode {
    /// The revision that the guest reads.
    pub revision: u32,
    /// The handling of a microcode update that the guest starts.
    pub update: Update,
}

/// The handling of a microcode update.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Update {
    /// If the update's header is valid, the guest reads the update's revision from then on.
    Accept,
    /// The update has no effect, and the guest gets no error.
    Ignore,
    /// The guest's write that starts the update gets #GP.
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
