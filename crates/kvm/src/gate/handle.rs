//! Unsafe: takes the shared page of a vCPU by a pointer of the VMM's.
//!
//! The ways in which a VMM passes a KVM vCPU: as the type of a binding, or as file descriptor and
//! shared page.
#![expect(unsafe_code, reason = "a pointer whose target the VMM answers for")]

use std::os::fd::RawFd;
use std::ptr::NonNull;

use kvm_bindings::kvm_run;

/// A KVM vCPU, in the type that the VMM uses for its vCPUs.
///
/// `kvm_ioctls::VcpuFd` implements this, in the version of `kvm-ioctls` that the crate's feature names.
/// A VMM with another version or another binding makes a [`RawVcpu`].
pub trait VcpuHandle: Parts {}

/// A vCPU as file descriptor and shared page. Other crates cannot implement this trait.
pub trait Parts {
    /// True if the page and the file descriptor that [`Self::parts`] returns always belong to the same vCPU.
    const ARE_ONE: bool;

    /// Returns the vCPU's file descriptor, and its shared page.
    fn parts(&mut self) -> (RawFd, &mut kvm_run);
}

/// A vCPU of any binding: its file descriptor, and a pointer to its shared page.
///
/// A VMM that holds its vCPU by `&self` keeps a copy of this handle beside the vCPU, and passes that copy to
/// [`VcpuGate::save`](super::VcpuGate::save), [`restore`](super::VcpuGate::restore) and
/// [`reset`](super::VcpuGate::reset).
///
/// ```no_run
/// use std::os::fd::AsRawFd;
/// use std::ptr::NonNull;
///
/// use msrgate_kvm::gate::{AnswerError, Outcome, RawVcpu, VcpuGate};
///
/// fn answer(
///     msrs: &mut VcpuGate,
///     vcpu: &mut kvm_ioctls::VcpuFd,
/// ) -> Result<Outcome, AnswerError> {
///     let page = NonNull::from(vcpu.get_kvm_run());
///     // SAFETY: `vcpu` keeps its page mapped, and is borrowed mutably until this returns.
///     let mut vcpu = unsafe { RawVcpu::new(vcpu.as_raw_fd(), page) };
///     msrs.answer(&mut vcpu)
/// }
/// ```
#[derive(Clone, Copy, Debug)]
pub struct RawVcpu {
    fd: RawFd,
    run: NonNull<kvm_run>,
}

// SAFETY: the fields are a pointer to a page and a number, and neither is bound to a thread. The caller of
// `RawVcpu::new` keeps threads from using them at the same time.
unsafe impl Send for RawVcpu {}
// SAFETY: as above; a shared reference only allows copying the value.
unsafe impl Sync for RawVcpu {}

impl RawVcpu {
    /// Makes the handle of the vCPU behind `fd`. The vCPU's shared page, `struct kvm_run`, is at `run`. `T`
    /// is the type that the VMM's binding has for `struct kvm_run`.
    ///
    /// # Safety
    /// `run` points to the mapping of a vCPU's file descriptor, of the size that
    /// `KVM_GET_VCPU_MMAP_SIZE` returns. The mapping exists as long as this handle or a copy of it is
    /// used. During each call that gets this handle or a copy, no other thread runs the vCPU, and no
    /// other code reads or writes the page, except `immediate_exit` by accesses of one byte.
    #[must_use]
    pub const unsafe fn new<T>(fd: RawFd, run: NonNull<T>) -> Self {
        Self {
            fd,
            run: run.cast(),
        }
    }
}

impl VcpuHandle for RawVcpu {}

impl Parts for RawVcpu {
    const ARE_ONE: bool = false;

    fn parts(&mut self) -> (RawFd, &mut kvm_run) {
        // SAFETY: the caller of `new` guarantees that the page is mapped, and that no other code uses
        // it during the call that this borrow is for.
        (self.fd, unsafe { self.run.as_mut() })
    }
}

/// Makes a handle with the file descriptor of one vCPU and the page of another vCPU, as a mistaken VMM may
/// pass it.
#[cfg(all(test, not(loom)))]
pub(super) fn mixed(fd: &impl std::os::fd::AsRawFd, of: &mut kvm_ioctls::VcpuFd) -> RawVcpu {
    let page = NonNull::from(of.get_kvm_run());
    // SAFETY: the tests use the handle while they keep `of`, on one thread, and hold no reference to
    // the page.
    unsafe { RawVcpu::new(fd.as_raw_fd(), page) }
}
