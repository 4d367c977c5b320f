//! The operations of a gate on a VM: it sets filters and masks of exit reasons, and asks for capabilities.

use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use msrgate_filter::{Filter, ReasonMask};

use super::error::GateError;
use super::per_process::PerProcess;
use crate::install::{InstallError, Mask};
use crate::sys::calls;

/// The operations that a gate may do on a VM, by one thread at a time.
pub(super) trait VmPort: Send {
    /// Puts a filter and a mask of exit reasons in force (S7).
    ///
    /// # Errors
    /// The errors are those of [`Installed::replace`](crate::Installed::replace).
    fn replace(&mut self, filter: &Filter, reasons: ReasonMask) -> Result<(), InstallError>;

    /// Tells if the guest of this VM may run nested guests.
    fn has_nested_state(&self) -> bool;

    /// Tells if KVM puts a vCPU's registers into `kvm_run` when the gate asks for them.
    fn has_shared_registers(&self) -> bool;
}

/// A VM of the real KVM.
pub(super) struct KvmVm {
    fd: Arc<OwnedFd>,
    mask: Mask,
    has_nested_state: bool,
}

/// The VMs of this process that have a gate. A VM may have only one gate, since each gate sets filters as if
/// it were the VM's only gate.
static GUARDED: PerProcess<Mutex<Vec<Weak<OwnedFd>>>> = PerProcess::new();

impl KvmVm {
    /// Makes the [`VmPort`] by which a gate reaches a VM, and duplicates the VM's file descriptor.
    ///
    /// # Errors
    /// [`GateError::OtherGate`] if the VM has a gate already and the kernel can tell; [`GateError::Io`]
    /// if the process has no file descriptor left.
    pub(super) fn new(vm: &impl AsRawFd) -> Result<Self, GateError> {
        let mut guarded = GUARDED.get().lock().unwrap_or_else(PoisonError::into_inner);
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
