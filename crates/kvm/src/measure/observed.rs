//! The steps of a script, one MSR access each, and what the guest and user space observed of them.

use msrgate_filter::{Access, MsrIndex};

use crate::exit::RawReason;

/// A step of a script: one access, and user space's reply if the access exits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// The MSR that the guest accesses.
    pub index: MsrIndex,
    /// The direction of the access.
    pub access: Access,
    /// The value that the guest writes; ignored for a read.
    pub value: u64,
    /// The reply of user space if the access exits.
    pub reply: StepReply,
}

/// The reply of user space to an MSR exit (S5.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StepReply {
    /// A #GP for the guest: `error` is 1.
    Fault,
    /// Success: `error` is 0 and `data` is this value, which only a read uses.
    Value(u64),
}

/// The result of one step of a script, as the guest and user space observed it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Observed {
    /// The result of the access that the guest observed.
    pub outcome: GuestOutcome,
    /// The exit of the access that user space observed; `None` if the access did not exit.
    pub exit: Option<SeenExit>,
}

/// The result of an access, as the guest observed it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GuestOutcome {
    /// RDMSR returned this value.
    Value(u64),
    /// WRMSR completed.
    Written,
    /// The access raised #GP.
    Fault(Fault),
}

/// A #GP as the guest's handler observed it (S5.7).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The RIP that the CPU pushed for the #GP: that of the access, or another one.
    pub site: Site,
    /// The error code that the CPU pushed for the #GP.
    pub code: u64,
    /// RAX, RCX and RDX, compared with their values before the access.
    pub registers: GuestRegisters,
}

/// The position of RIP at a #GP or at an exit, compared with the RDMSR or WRMSR that caused it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Site {
    /// RIP is at the RDMSR or WRMSR.
    AtInstruction,
    /// RIP is at this other address, which is a deviation.
    Elsewhere(u64),
}

/// The values of RAX, RCX and RDX at a #GP or at an exit, compared with those before the access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GuestRegisters {
    /// All 64 bits of all three registers are unchanged.
    Untouched,
    /// At least one register changed, which is a deviation; the fields hold the observed values.
    Changed {
        /// The value of RAX at the #GP or exit.
        rax: u64,
        /// The value of RCX at the #GP or exit.
        rcx: u64,
        /// The value of RDX at the #GP or exit.
        rdx: u64,
    },
}

/// An exit to user space as it was observed (S5.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SeenExit {
    /// The exit reason, as the kernel wrote it.
    pub reason: RawReason,
    /// The MSR that the exit names.
    pub index: MsrIndex,
    /// The direction of the access, from the number of the exit (S1.3).
    pub access: Access,
    /// The field `data` of the exit: for a write, the value that the guest writes.
    pub data: u64,
    /// The position of RIP at the exit.
    pub site: Site,
    /// RAX, RCX and RDX, compared with their values before the access.
    pub registers: GuestRegisters,
}
