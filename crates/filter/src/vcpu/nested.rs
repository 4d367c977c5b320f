//! The MSR lists of nested VM entry and exit (S4).

use super::Vcpu;
use crate::exit::ExitReason;
use crate::msr::MsrIndex;
use crate::registers::Registers;

/// One element of a list that a guest hypervisor made and KVM goes through for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ListAccess {
    /// VM-entry or VM-exit MSR load: the value goes to the register.
    Load(u64),
    /// VM-exit MSR store: the register goes to the list.
    Store,
}

/// What became of the element.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ListOutcome {
    /// The register holds the value.
    Loaded,
    /// The list gets this value.
    Stored(u64),
    /// The nested entry or exit fails, whatever the VM's reason mask: this never gets to user space
    /// as an exit.
    Fails(ListFailure),
}

/// Why a nested entry or exit fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ListFailure {
    /// The register to blame.
    pub index: MsrIndex,
    /// What an RDMSR or WRMSR of it would have failed for.
    pub reason: ExitReason,
}

impl<R: Registers> Vcpu<R> {
    /// Does what one element of a nested hypervisor's list asks for. The guest made the list, so
    /// the filter is asked, on both revisions; they differ in what it exempts (S3.1).
    pub fn nested_list_access(&mut self, index: MsrIndex, access: ListAccess) -> ListOutcome {
        let result = match access {
            ListAccess::Load(value) => self.guest_write(index, value).map(|()| ListOutcome::Loaded),
            ListAccess::Store => self.guest_read(index).map(ListOutcome::Stored),
        };
        result.unwrap_or_else(|reason| ListOutcome::Fails(ListFailure { index, reason }))
    }
}
