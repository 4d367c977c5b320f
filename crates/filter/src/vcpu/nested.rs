//! The MSR lists of nested VM entry and exit (S4).

use super::Vcpu;
use crate::exit::ExitReason;
use crate::msr::MsrIndex;
use crate::registers::Registers;

/// One element of an MSR list that a guest hypervisor made and KVM processes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ListAccess {
    /// An element of a VM-entry or VM-exit MSR-load list: KVM loads this value into the register.
    Load(u64),
    /// An element of a VM-exit MSR-store list: KVM stores the value of the register into the list.
    Store,
}

/// The result of handling one element of an MSR list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ListOutcome {
    /// The register now has the value from the list.
    Loaded,
    /// The list now has this value, which KVM has read from the register.
    Stored(u64),
    /// The nested entry or exit fails. The VM's reason mask does not matter: the failure never
    /// becomes an exit to user space.
    Fails(ListFailure),
}

/// The reason why a nested entry or exit fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ListFailure {
    /// The register whose access failed.
    pub index: MsrIndex,
    /// The reason with which an RDMSR or WRMSR of the register would have failed.
    pub reason: ExitReason,
}

impl<R: Registers> Vcpu<R> {
    /// Handles one element of an MSR list of a guest hypervisor. The guest made the list, so both
    /// revisions of KVM ask the filter. The two revisions of KVM exempt different MSRs from the
    /// filter (S3.1).
    pub fn nested_list_access(&mut self, index: MsrIndex, access: ListAccess) -> ListOutcome {
        let result = match access {
            ListAccess::Load(value) => self.guest_write(index, value).map(|()| ListOutcome::Loaded),
            ListAccess::Store => self.guest_read(index).map(ListOutcome::Stored),
        };
        result.unwrap_or_else(|reason| ListOutcome::Fails(ListFailure { index, reason }))
    }
}
