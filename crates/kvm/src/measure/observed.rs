//! A guest's accesses, one step each, and what the guest and user space saw of them.

use msrgate_filter::{Access, MsrIndex};

use crate::exit::RawReason;

/// One access, and what user space says should it be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// The MSR.
    pub index: MsrIndex,
    /// What to do to it.
    pub access: Access,
    /// What to write; nothing looks at it in a read.
    pub value: u64,
    /// The answer to an exit.
    pub reply: StepReply,
}

/// User space's answer to an exit (S5.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StepReply {
    /// #GP: `error` is 1.
    Fault,
    /// The access went well: `error` is 0 and `data`, which only a read looks at, is this.
    Value(u64),
}

/// The result of one step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Observed {
    /// What the guest saw.
    pub outcome: GuestOutcome,
    /// What user space saw, if it was asked.
    pub exit: Option<SeenExit>,
}

/// The guest's view of its access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GuestOutcome {
    /// RDMSR gave this value.
    Value(u64),
    /// WRMSR went through.
    Written,
    /// #GP.
    Fault(Fault),
}

/// A #GP as the guest's handler found it (S5.7).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Where RIP was.
    pub site: Site,
    /// The error code.
    pub code: u64,
    /// RAX, RCX and RDX.
    pub registers: GuestRegisters,
}

/// Where RIP was at a fault or an exit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Site {
    /// At the RDMSR or WRMSR.
    AtInstruction,
    /// At this address, which is a deviation.
    Elsewhere(u64),
}

/// RAX, RCX and RDX at a fault or an exit, compared with those before the access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GuestRegisters {
    /// All the same, in all 64 bits.
    Untouched,
    /// Not the same, which is a deviation; these are they.
    Changed {
        /// RAX.
        rax: u64,
        /// RCX.
        rcx: u64,
        /// RDX.
        rdx: u64,
    },
}

/// An exit to user space as it was found (S5.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SeenExit {
    /// Why, in the kernel's bits.
    pub reason: RawReason,
    /// The MSR.
    pub index: MsrIndex,
    /// Which exit it was.
    pub access: Access,
    /// The value of a write.
    pub data: u64,
    /// Where RIP was.
    pub site: Site,
    /// RAX, RCX and RDX.
    pub registers: GuestRegisters,
}
