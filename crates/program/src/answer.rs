//! What user space says to an access that KVM hands to it: from an exit to an answer.
//!
//! A [`Responder`] is a program made ready for one kind of processor, shared by the vCPUs of a VM. A
//! [`VcpuState`] is what one vCPU's answers depend on beside it: its emulated registers, and what is
//! pinned. [`Responder::respond`] is all there is to decide; it opens nothing, waits for nothing and
//! allocates nothing. Whoever calls it carries the [`Response`] out.
//!
//! Accesses that the policy allows come here, too: those that are to be seen, once
//! ([`Log::First`](crate::Log::First)) or each time ([`Log::All`](crate::Log::All)), and those for which the kernel's filter is not yet
//! the new program's. The first and the last are never answered: the guest executes them again
//! (S5.8).

mod cells;
mod forwarded;
mod microcode;
mod respond;
mod responder;
mod save;
mod state;

use alloc::sync::Arc;
use core::fmt;

use msrgate_filter::Reply;

use crate::action::Device;
use crate::origin::{DecidedBy, PackedBy};
use crate::rules::Outcome;

pub use cells::MAX_CELLS;
pub use forwarded::{Carried, Forwarded};
pub use microcode::{MicrocodeHeader, SIGN_ID, is_cleared_first, revision_value, update_header_at};
pub use responder::{Responder, ResponderError};
pub use save::{RestoreError, Saved, SavedDevice};
pub use state::VcpuState;

/// What is to be done about an exit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer<'p> {
    /// What to do.
    pub response: Response<'p>,
    /// What that is to be called.
    pub disposition: Disposition,
    /// What the program says of the access.
    pub outcome: &'p Outcome,
    by: PackedBy,
}

impl Answer<'_> {
    /// What decides the access.
    #[must_use]
    pub const fn decided_by(&self) -> DecidedBy {
        self.by.get()
    }
}

/// What to do about an exit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Response<'p> {
    /// Complete it with this.
    Reply(Reply),
    /// Have the guest execute the access again (S5.8): the program lets KVM handle it, and the
    /// kernel's filter will.
    Rewind,
    /// The same, and see to it that the kernel's filter lets this access through from now on.
    Open,
    /// Carry it to the register that KVM keeps.
    Forward(Forwarded),
    /// Ask the VMM's own code of this name.
    Handler(&'p Arc<str>),
    /// Ask this device.
    Device(Device),
    /// End the call or the VM.
    Kill,
}

/// What is done to an access, in one word: for events and counters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Disposition {
    /// KVM handles it.
    Allowed,
    /// #GP.
    Denied,
    /// KVM handles it, where without `mode = "audit"` it would be a #GP.
    WouldDeny,
    /// The call or the VM ends.
    Killed,
    /// KVM handles it, where without `mode = "audit"` the call or the VM would end.
    WouldKill,
    /// A read gets the policy's value.
    Value,
    /// A write does nothing.
    Ignored,
    /// A register in user space answers.
    Register,
    /// A write reaches the register as far as the mask goes.
    Masked,
    /// A write to a pinned register, the first or one that is equal.
    Pinned,
    /// A write reaches the register, and bits that were set stay set.
    Sticky,
    /// The VMM's own code answers.
    Handled,
    /// A device answers.
    Device,
    /// KVM does not know the MSR, and `unknown` answers.
    Unknown,
}

impl Disposition {
    /// All of them, each at the place of its [number](Self::number).
    pub const ALL: [Self; 14] = [
        Self::Allowed,
        Self::Denied,
        Self::WouldDeny,
        Self::Killed,
        Self::WouldKill,
        Self::Value,
        Self::Ignored,
        Self::Register,
        Self::Masked,
        Self::Pinned,
        Self::Sticky,
        Self::Handled,
        Self::Device,
        Self::Unknown,
    ];

    /// Its place in [`Self::ALL`].
    #[must_use]
    pub const fn number(self) -> u8 {
        self as u8
    }

    /// Whether the policy refuses the access, or would.
    #[must_use]
    pub const fn is_refusal(self) -> bool {
        matches!(
            self,
            Self::Denied | Self::WouldDeny | Self::Killed | Self::WouldKill
        )
    }
}

/// In one word, as events and counters write it.
impl fmt::Display for Disposition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Allowed => "allow",
            Self::Denied => "deny",
            Self::WouldDeny => "would-deny",
            Self::Killed => "kill",
            Self::WouldKill => "would-kill",
            Self::Value => "value",
            Self::Ignored => "ignore",
            Self::Register => "register",
            Self::Masked => "mask",
            Self::Pinned => "pin",
            Self::Sticky => "sticky",
            Self::Handled => "handler",
            Self::Device => "device",
            Self::Unknown => "unknown",
        })
    }
}
