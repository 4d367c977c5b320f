//! The ways in which the hypervisor ends the machine.

/// The reason for the end, as a code for QEMU's isa-debug-exit: QEMU's status is `2 * code + 1`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Status {
    /// The guest had a triple fault.
    TripleFault = 0x30,
    /// The hypervisor panicked.
    Panic = 0x31,
    /// The guest could not be started.
    NotStarted = 0x32,
    /// The guest touched memory that is not there for it.
    Memory = 0x33,
    /// The hypervisor had an exception of its own.
    Exception = 0x34,
    /// The guest exited for a reason that the hypervisor does not handle.
    UnknownExit = 0x35,
    /// The guest's instruction is not one that the hypervisor can handle.
    Instruction = 0x36,
    /// The policy ended the machine.
    Killed = 0x37,
    /// The guest resets a processor that runs.
    Init = 0x38,
}
