//! Unsafe: takes the shared page of a vCPU by a pointer of the VMM's.
//!
//! A vCPU of KVM's as its VMM holds it: by a type of a binding, or by file descriptor and shared page.
#![expect(unsafe_code, reason = "a pointer whose target the VMM answers for")]

use std::os::fd::RawFd;
use std::ptr::NonNull;

use kvm_bindings::kvm_run;

/// A vCPU of KVM's, as its VMM holds it.
///
/// `kvm_ioctls::VcpuFd` is one, of the version of `kvm-ioctls` that the crate's feature names. VMMs with
/// another version or another binding make a [`RawVcpu`].
pub trait VcpuHandle: Parts {}

/// A vCPU in its parts. No other crate implements it.
pub trait Parts {
    /// Whether the page that [`Self::parts`] gives is always the one of the file descriptor beside it.
    const ARE_ONE: bool;

    /// The vCPU's file descriptor, and its shared page.
    fn parts(&mut self) -> (RawFd, &mut kvm_run);
}

/// A vCPU of any binding: its file descriptor, and a pointer to its shared page.
///
/// A VMM that holds its vCPU by `&self` keeps a copy of this beside it, and calls
/// [`VcpuGate::save`](super::VcpuGate::save), [`restore`](super::VcpuGate::restore) and
/// [`reset`](super::VcpuGate::reset) through that copy.
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

// SAFETY: a page of memory and a number, which belong to no thread. `RawVcpu::new`'s caller keeps threads
// from using them at the same time.
unsafe impl Send for RawVcpu {}
// SAFETY: as above; nothing can be done by a shared reference but to copy it.
unsafe impl Sync for RawVcpu {}

impl RawVcpu {
    /// The vCPU behind `fd`, whose shared page, `struct kvm_run`, is at `run`. `T` is whatever the VMM's
    /// binding calls that structure.
    ///
    /// # Safety
    /// `run` points to the mapping of a vCPU's file descriptor, as `KVM_GET_VCPU_MMAP_SIZE` has its size, and
    /// that is mapped as long as this or a copy of it is used. During each call that is given this or a copy,
    /// no other thread runs the vCPU, and nobody else reads or writes the page, but for `immediate_exit` by
    /// accesses of one byte.
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
        // SAFETY: `new`'s caller answers for the page, and that nobody else uses it during the call that
        // this borrow is for.
        (self.fd, unsafe { self.run.as_mut() })
    }
}

/// A vCPU whose file descriptor and page are of two, as a mistaken VMM may have them.
#[cfg(all(test, not(loom)))]
pub(super) fn mixed(fd: &impl std::os::fd::AsRawFd, of: &mut kvm_ioctls::VcpuFd) -> RawVcpu {
    let page = NonNull::from(of.get_kvm_run());
    // SAFETY: the tests use it while they keep `of`, on one thread, and no reference to the page is left.
    unsafe { RawVcpu::new(fd.as_raw_fd(), page) }
}
