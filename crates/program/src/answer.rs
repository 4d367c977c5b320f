//! The answers of user space to the MSR exits of a guest.
//!
//! A [`Responder`] is a program prepared for one kind of processor, shared by the vCPUs of a VM. A
//! [`VcpuState`] is the state of one vCPU on which its answers depend: emulated registers and
//! pinned values. [`Responder::respond`] makes the whole decision; it opens nothing, waits for
//! nothing and allocates nothing. The gate, its caller, carries out the [`Response`].
//!
//! Accesses that the policy allows can exit too, for one of three reasons:
//!
//! - The policy logs first accesses ([`Log::First`](crate::Log::First)). The gate opens the kernel's
//!   filter for the access and rewinds the exit: the guest executes the access again (S5.8).
//! - The policy logs every access ([`Log::All`](crate::Log::All)). The gate forwards the access if
//!   it can; otherwise it does the same as for a first access.
//! - The program has just been replaced, and the kernel's filter is still that of the old program.
//!   The gate rewinds the exit.

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

/// The answer to an exit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer<'p> {
    /// The step that the gate has to carry out.
    pub response: Response<'p>,
    /// The disposition that the access has if the gate succeeds in carrying out the response.
    pub disposition: Disposition,
    /// The action and the logging that the program has for the access.
    pub outcome: &'p Outcome,
    by: PackedBy,
}

impl Answer<'_> {
    /// The entry of the policy, the policy's default action, or the rule of KVM that decides the
    /// access.
    #[must_use]
    pub const fn decided_by(&self) -> DecidedBy {
        self.by.get()
    }
}

/// The step with which the gate reacts to an exit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Response<'p> {
    /// The gate completes the exit with this reply.
    Reply(Reply),
    /// The gate rewinds the exit, so that the guest executes the access again (S5.8). By then the
    /// kernel's filter allows the access, and KVM handles it.
    Rewind,
    /// The gate makes the kernel's filter allow this access from now on. Then the gate rewinds the exit, so
    /// that the guest executes the access again.
    Open,
    /// The gate forwards the access to the register that KVM keeps.
    Forward(Forwarded),
    /// The gate asks the VMM's handler with this name: a handler request.
    Handler(&'p Arc<str>),
    /// The gate lets this emulated device answer the access.
    Device(Device),
    /// The gate tells the VMM to end the VM (in a VM that runs one function for each request of its host: to
    /// end the function that runs now).
    Kill,
}

/// The gate's handling of an access, as one word for events and counters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Disposition {
    /// KVM handled the access.
    Allowed,
    /// The guest got #GP.
    Denied,
    /// KVM handled the access; without `mode = "audit"` the guest would have got #GP.
    WouldDeny,
    /// The gate told the VMM to end the VM (in a VM that runs one function for each request of its host: to
    /// end the function that runs now).
    Killed,
    /// KVM handled the access; without `mode = "audit"` the disposition would have been
    /// [`Self::Killed`].
    WouldKill,
    /// The read returned the value that the action `value` of the policy gives.
    Value,
    /// The write succeeded without an effect, by the action `ignore`.
    Ignored,
    /// An emulated register answered the access.
    Register,
    /// The write reached the register, by the action `mask`: only bits in the mask were changed.
    Masked,
    /// The write reached a pinned register: it was the first write, or had the pinned value.
    Pinned,
    /// The write reached the register, in which the sticky bits that were 1 stayed 1.
    Sticky,
    /// The VMM's handler answered the access.
    Handled,
    /// An emulated device answered the access.
    Device,
    /// KVM does not know the MSR, and the guest got the answer that the policy's setting `unknown`
    /// has for such MSRs.
    Unknown,
}

impl Disposition {
    /// All dispositions, each at the position of its [number](Self::number).
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

    /// The position of this disposition in [`Self::ALL`].
    #[must_use]
    pub const fn number(self) -> u8 {
        self as u8
    }

    /// Returns true if the policy refused the access, or would have refused it without audit mode.
    #[must_use]
    pub const fn is_refusal(self) -> bool {
        matches!(
            self,
            Self::Denied | Self::WouldDeny | Self::Killed | Self::WouldKill
        )
    }
}

/// Writes the disposition as one word, as events and counters do.
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
