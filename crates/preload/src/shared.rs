//! Unsafe: maps and reads a vCPU's shared page, `struct kvm_run`, which the VMM and the kernel write.
#![expect(unsafe_code, reason = "a union of the kernel's ABI")]

use std::os::fd::{AsRawFd as _, OwnedFd, RawFd};
use std::ptr::{self, NonNull};

use kvm_bindings::{KVM_SYNC_X86_REGS, kvm_run};
use msrgate_kvm::gate::RawVcpu;

/// A vCPU's descriptor of our own, by which it is known whatever number the VMM has closed, and its first page, mapped once more: all that the gate looks at lies there.
#[derive(Debug)]
pub(crate) struct SharedPage(NonNull<kvm_run>, OwnedFd);

// SAFETY: memory that stays mapped until this is dropped, and belongs to no thread. Who runs the vCPU uses it.
unsafe impl Send for SharedPage {}
// SAFETY: as above; each access is a volatile one of a single field.
unsafe impl Sync for SharedPage {}

const SIZE: usize = 4096;
const _: () = assert!(size_of::<kvm_run>() <= SIZE);

impl SharedPage {
    /// Maps the page of a vCPU.
    ///
    /// # Errors
    /// The kernel does not map it.
    pub(crate) fn map(vcpu: OwnedFd) -> Result<Self, String> {
        let prot = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping at a place that the kernel chooses.
        let page = unsafe {
            libc::mmap(
                ptr::null_mut(),
                SIZE,
                prot,
                libc::MAP_SHARED,
                vcpu.as_raw_fd(),
                0,
            )
        };
        match NonNull::new(page).filter(|_| page != libc::MAP_FAILED) {
            Some(page) => Ok(Self(page.cast(), vcpu)),
            None => Err(format!(
                "the vCPU's page cannot be mapped: {}",
                std::io::Error::last_os_error()
            )),
        }
    }

    /// The descriptor.
    pub(crate) fn own(&self) -> RawFd {
        self.1.as_raw_fd()
    }

    /// Calls `act` with the vCPU as the gate takes it: on the thread that runs the vCPU next, or on the helper's while
    /// that thread waits.
    pub(crate) fn with_vcpu<T>(&self, act: impl FnOnce(&mut RawVcpu) -> T) -> T {
        // SAFETY: the page was mapped from this descriptor, and both live as long as `self`. KVM lets one thread at a time
        // run a vCPU, and this is called by the one that does so next, or by the VMM's between two runs.
        let mut vcpu = unsafe { RawVcpu::new(self.own(), self.0) };
        act(&mut vcpu)
    }

    /// Why the last `KVM_RUN` returned.
    #[inline]
    pub(crate) fn exit_reason(&self) -> u32 {
        // SAFETY: a field of the mapped page.
        let field = unsafe { &raw const (*self.0.as_ptr()).exit_reason };
        // SAFETY: as above, aligned; volatile, for the kernel writes it.
        unsafe { field.read_volatile() }
    }

    /// Which registers the VMM wants in the page.
    #[inline]
    pub(crate) fn valid_regs(&self) -> u64 {
        // SAFETY: a field of the mapped page.
        let field = unsafe { &raw const (*self.0.as_ptr()).kvm_valid_regs };
        // SAFETY: as above, aligned; volatile, for the VMM writes it.
        unsafe { field.read_volatile() }
    }

    /// Asks for these registers.
    #[inline]
    pub(crate) fn set_valid_regs(&self, registers: u64) {
        // SAFETY: a field of the mapped page.
        let field = unsafe { &raw mut (*self.0.as_ptr()).kvm_valid_regs };
        // SAFETY: as above, aligned; the vCPU's own thread writes it.
        unsafe { field.write_volatile(registers) }
    }
}

impl Drop for SharedPage {
    fn drop(&mut self) {
        // SAFETY: our own mapping, which nobody uses any more.
        unsafe { libc::munmap(self.0.as_ptr().cast(), SIZE) };
    }
}

/// The general registers, as a bit of `kvm_valid_regs`.
pub(crate) const GENERAL: u64 = KVM_SYNC_X86_REGS as u64;
