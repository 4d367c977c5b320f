//! What a gate does to a VM: it sets filters and masks, and asks what it has.

use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use msrgate_filter::{Filter, ReasonMask};

use super::error::GateError;
use crate::install::{InstallError, Mask};
use crate::sys::calls;

/// What a gate may do to a VM. One thread at a time.
pub(super) trait VmPort: Send {
    /// Puts a filter and a mask in force (S7).
    ///
    /// # Errors
    /// As [`Installed::replace`](crate::Installed::replace).
    fn replace(&mut self, filter: &Filter, reasons: ReasonMask) -> Result<(), InstallError>;

    /// Whether its guests may run guests.
    fn has_nested_state(&self) -> bool;

    /// Whether registers are put into `kvm_run` when asked for.
    fn has_shared_registers(&self) -> bool;
}

/// A VM of a real KVM.
pub(super) struct KvmVm {
    fd: Arc<OwnedFd>,
    mask: Mask,
    has_nested_state: bool,
}

/// The VMs of this process that have a gate. Each gate sets filters as if it were alone.
static GUARDED: Mutex<Vec<Weak<OwnedFd>>> = Mutex::new(Vec::new());

impl KvmVm {
    /// The VM of this file descriptor, of which this keeps a duplicate.
    ///
    /// # Errors
    /// The VM has a gate already, if the kernel can tell; or there is no file descriptor left.
    pub(super) fn new(vm: &impl AsRawFd) -> Result<Self, GateError> {
        let mut guarded = GUARDED.lock().unwrap_or_else(PoisonError::into_inner);
        guarded.retain(|other| other.strong_count() > 0);
        let others = guarded.iter().filter_map(Weak::upgrade);
        if others
            .into_iter()
            .any(|other| calls::is_one_file(&other, vm) == Some(true))
        {
            return Err(GateError::OtherGate);
        }
        let fd = Arc::new(calls::duplicate(vm).map_err(GateError::Io)?);
        guarded.push(Arc::downgrade(&fd));
        Ok(Self {
            has_nested_state: calls::has_nested_state(&fd),
            fd,
            mask: Mask::unknown(),
        })
    }
}

impl VmPort for KvmVm {
    fn replace(&mut self, filter: &Filter, reasons: ReasonMask) -> Result<(), InstallError> {
        self.mask.replace(&*self.fd, filter, reasons)
    }

    fn has_nested_state(&self) -> bool {
        self.has_nested_state
    }

    fn has_shared_registers(&self) -> bool {
        calls::has_shared_registers(&self.fd)
    }
}
