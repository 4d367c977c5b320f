//! Unsafe: passes file descriptors that this crate owns to types of `kvm-ioctls`.
//!
//! This module is the part of the interface that names types of `kvm-ioctls`.
#![expect(
    unsafe_code,
    reason = "a type that takes a file descriptor over cannot know its owner"
)]

use std::os::fd::{AsRawFd, FromRawFd, IntoRawFd, RawFd};

use kvm_bindings::kvm_run;
use kvm_ioctls::{Kvm, VcpuFd, VmFd};

use crate::gate::handle::{Parts, VcpuHandle};
use crate::host::HostError;
use crate::probe::{self, HostCaps};

impl HostCaps {
    /// Creates a new VM on this host.
    ///
    /// # Errors
    /// Returns the errors of [`Self::probe`], because the device can have disappeared since the probe, and
    /// [`HostError::CreateVm`] or [`HostError::Busy`] if the kernel refuses to create a VM.
    pub fn create_vm(&self) -> Result<VmFd, HostError> {
        let kvm = self.open()?;
        let vm = probe::create_vm(&kvm, self.device())?;
        // SAFETY: `vm` is a VM's file descriptor, and into_raw_fd gave up its ownership; the new VmFd is
        // its only owner from now on.
        unsafe { kvm.create_vmfd_from_rawfd(vm.into_raw_fd()) }
            .map_err(|errno| HostError::from_create(self.device(), errno.into()))
    }

    pub(crate) fn open(&self) -> Result<Kvm, HostError> {
        let kvm = probe::open(self.device())?;
        // SAFETY: into_raw_fd gave up the ownership of the file descriptor; the new Kvm is its only owner
        // from now on.
        Ok(unsafe { Kvm::from_raw_fd(kvm.into_raw_fd()) })
    }
}

impl VcpuHandle for VcpuFd {}

impl Parts for VcpuFd {
    const ARE_ONE: bool = true;

    fn parts(&mut self) -> (RawFd, &mut kvm_run) {
        (self.as_raw_fd(), self.get_kvm_run())
    }
}
