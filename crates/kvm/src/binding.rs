//! Unsafe: gives file descriptors of ours to types of `kvm-ioctls`.
//!
//! The part of the interface that speaks of `kvm-ioctls`.
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
    /// Makes a new VM on this host.
    ///
    /// # Errors
    /// As [`Self::probe`]: the device may have gone since.
    pub fn create_vm(&self) -> Result<VmFd, HostError> {
        let kvm = self.open()?;
        let vm = probe::create_vm(&kvm, self.device())?;
        // SAFETY: the file descriptor is a VM's, and is given away, to a type that owns it from now on.
        unsafe { kvm.create_vmfd_from_rawfd(vm.into_raw_fd()) }
            .map_err(|errno| HostError::from_create(self.device(), errno.into()))
    }

    pub(crate) fn open(&self) -> Result<Kvm, HostError> {
        let kvm = probe::open(self.device())?;
        // SAFETY: the file descriptor is given away, to a type that owns it from now on.
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
