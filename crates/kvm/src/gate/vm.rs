//! What a gate does to a VM: it sets filters and masks, and asks what it has.

use std::os::fd::{AsRawFd, OwnedFd};

use msrgate_filter::{Filter, ReasonMask};

use super::error::GateError;
use crate::calls;
use crate::install::{InstallError, Installed};

/// What a gate may do to a VM. One thread at a time.
pub(super) trait VmPort: Send {
    /// Puts a filter and a mask in force (S7).
    ///
    /// # Errors
    /// As [`Installed::replace`].
    fn replace(&mut self, filter: &Filter, reasons: ReasonMask) -> Result<(), InstallError>;

    /// Whether its guests may run guests.
    fn has_nested_state(&self) -> bool;

    /// Whether registers are put into `kvm_run` when asked for.
    fn has_shared_registers(&self) -> bool;
}

/// A VM of a real KVM.
pub(super) struct KvmVm {
    fd: OwnedFd,
    installed: Installed,
    has_nested_state: bool,
}

impl KvmVm {
    /// The VM of this file descriptor, of which this keeps a duplicate.
    ///
    /// # Errors
    /// There is no file descriptor left.
    pub(super) fn new(vm: &impl AsRawFd) -> Result<Self, GateError> {
        let fd = calls::duplicate(vm).map_err(GateError::Io)?;
        Ok(Self {
            has_nested_state: calls::has_nested_state(&fd),
            fd,
            installed: Installed::nothing(),
        })
    }
}

impl VmPort for KvmVm {
    fn replace(&mut self, filter: &Filter, reasons: ReasonMask) -> Result<(), InstallError> {
        self.installed.replace(&self.fd, filter, reasons)
    }

    fn has_nested_state(&self) -> bool {
        self.has_nested_state
    }

    fn has_shared_registers(&self) -> bool {
        calls::has_shared_registers(&self.fd)
    }
}
