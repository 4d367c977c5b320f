//! Unsafe: two system calls with a pointer to a number.
//!
//! The machine-check features of a vCPU.
#![expect(unsafe_code, reason = "ioctl(2) with a pointer has no safe form")]

use std::os::fd::AsRawFd;

use kvm_bindings::KVMIO;
use vmm_sys_util::{ioctl_ior_nr, ioctl_iow_nr};

use crate::errno::CallErrno;
use crate::sys::calls::checked;
use crate::sys::ioctl::{ioctl_with_mut_ref, ioctl_with_ref};

ioctl_iow_nr!(KVM_X86_SETUP_MCE, KVMIO, 0x9c, u64);
ioctl_ior_nr!(KVM_X86_GET_MCE_CAP_SUPPORTED, KVMIO, 0x9d, u64);

/// Gives the vCPU all machine-check features that KVM supports (`KVM_X86_GET_MCE_CAP_SUPPORTED`), and the
/// largest number of banks (`KVM_X86_SETUP_MCE`).
pub(super) fn set_up_machine_checks(
    kvm: &impl AsRawFd,
    vcpu: &impl AsRawFd,
) -> Result<(), CallErrno> {
    /// `KVM_MAX_MCE_BANKS`; the number of banks is in the lowest bits of the argument.
    const BANKS: u64 = 32;
    let mut features = 0_u64;
    // SAFETY: the kernel writes one u64 to `features`.
    checked(unsafe { ioctl_with_mut_ref(kvm, KVM_X86_GET_MCE_CAP_SUPPORTED(), &mut features) })?;
    let request = features | BANKS;
    // SAFETY: the kernel reads one u64 from `request`, and keeps no pointer to it.
    checked(unsafe { ioctl_with_ref(vcpu, KVM_X86_SETUP_MCE(), &request) }).map(drop)
}
