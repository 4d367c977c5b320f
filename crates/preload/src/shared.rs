//! Unsafe: maps and reads a vCPU's shared page, `struct kvm_run`, which the VMM and the kernel write.
#![expect(unsafe_code, reason = "a union of the kernel's ABI")]

use std::os::fd::{AsRawFd as _, OwnedFd, RawFd};
use std::ptr::{self, NonNull};

use kvm_bindings::{KVM_EXIT_INTR, KVM_SYNC_X86_REGS, kvm_run};
use msrgate_kvm::gate::RawVcpu;

/// The first page of a vCPU's `kvm_run` mapping, which the library maps for itself, and the library's own
/// descriptor of the vCPU. The gate looks at nothing beyond that page. The descriptor identifies the vCPU
/// even after the VMM has closed its own.
#[derive(Debug)]
pub(crate) struct SharedPage(NonNull<kvm_run>, OwnedFd);

// SAFETY: the memory stays mapped until this value is dropped, and belongs to no thread. The thread that
// runs the vCPU uses it.
unsafe impl Send for SharedPage {}
// SAFETY: as for `Send`; each access is a volatile one of a single field.
unsafe impl Sync for SharedPage {}

const SIZE: usize = 4096;
const _: () = assert!(size_of::<kvm_run>() <= SIZE);

impl SharedPage {
    /// Maps the first page of a vCPU's `struct kvm_run`.
    ///
    /// # Errors
    /// The kernel refuses to map the page. The text says why.
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
            Some(page) => {
                // A forked child cannot use the vCPU, and a mapping would keep the VM. If this fails, it does.
                // SAFETY: the mapping is ours and has this size.
                unsafe { libc::madvise(page.as_ptr(), SIZE, libc::MADV_DONTFORK) };
                Ok(Self(page.cast(), vcpu))
            }
            None => Err(format!(
                "the vCPU's page cannot be mapped: {}",
                std::io::Error::last_os_error()
            )),
        }
    }

    /// The library's own descriptor of the vCPU.
    pub(crate) fn own(&self) -> RawFd {
        self.1.as_raw_fd()
    }

    /// Calls `act` with the vCPU in the form that the gate takes. The caller is the thread that runs the
    /// vCPU next, or the helper thread while that thread waits for it.
    pub(crate) fn with_vcpu<T>(&self, act: impl FnOnce(&mut RawVcpu) -> T) -> T {
        // SAFETY: the page was mapped from this descriptor, and both live as long as `self`. KVM lets one thread at a time
        // run a vCPU, and this is called by the one that does so next, or by the VMM's between two runs.
        let mut vcpu = unsafe { RawVcpu::new(self.own(), self.0) };
        act(&mut vcpu)
    }

    /// Returns the exit reason of the last `KVM_RUN`.
    #[inline]
    pub(crate) fn exit_reason(&self) -> u32 {
        // SAFETY: the field lies in the mapped page.
        let field = unsafe { &raw const (*self.0.as_ptr()).exit_reason };
        // SAFETY: the field is mapped and aligned; the read is volatile, as the kernel writes the field.
        unsafe { field.read_volatile() }
    }

    /// Sets the exit reason in the page to the one of a `KVM_RUN` that a signal has interrupted.
    pub(crate) fn interrupt(&self) {
        // SAFETY: the field lies in the mapped page.
        let field = unsafe { &raw mut (*self.0.as_ptr()).exit_reason };
        // SAFETY: the field is mapped and aligned, and the vCPU's own thread calls this between two runs.
        unsafe { field.write_volatile(KVM_EXIT_INTR) }
    }

    /// Sets a mark in the page before a call of `KVM_RUN`. The kernel removes the mark if the call runs this
    /// page's vCPU.
    #[inline]
    pub(crate) fn mark(&self) {
        self.set_flags(self.flags() | NOT_RUN);
    }

    /// Removes the mark of [`Self::mark`]. Returns true if the mark was still set, which means that
    /// `KVM_RUN` has not run this page's vCPU.
    #[inline]
    pub(crate) fn take_mark(&self) -> bool {
        let flags = self.flags();
        let is_marked = flags & NOT_RUN != 0;
        if is_marked {
            self.set_flags(flags & !NOT_RUN);
        }
        is_marked
    }

    #[inline]
    fn flags(&self) -> u16 {
        // SAFETY: the field lies in the mapped page.
        let field = unsafe { &raw const (*self.0.as_ptr()).flags };
        // SAFETY: the field is mapped and aligned; the read is volatile, as the kernel writes the field.
        unsafe { field.read_volatile() }
    }

    #[inline]
    fn set_flags(&self, flags: u16) {
        // SAFETY: the field lies in the mapped page.
        let field = unsafe { &raw mut (*self.0.as_ptr()).flags };
        // SAFETY: the field is mapped and aligned, and the vCPU's own thread calls this between two runs.
        unsafe { field.write_volatile(flags) }
    }

    /// Calls `act`, and has each `KVM_RUN` during that time copy the vCPU's general registers into the page.
    /// Only a `KVM_RUN` that rewinds an access needs the registers there: a #GP leaves the registers as they
    /// were before the access. The function then puts the former values back into `kvm_valid_regs` and the
    /// page's registers, for the VMM.
    pub(crate) fn with_registers<T>(&self, act: impl FnOnce() -> T) -> T {
        let run = self.0.as_ptr();
        // SAFETY: the field lies in the mapped page.
        let valid = unsafe { &raw mut (*run).kvm_valid_regs };
        // SAFETY: the field lies in the mapped page; on x86 it is the union's only member in use.
        let general = unsafe { &raw mut (*run).s.regs.regs };
        // SAFETY: both fields are mapped and aligned, and the vCPU's own thread calls this between two runs. Any bytes
        // are values.
        let theirs = unsafe { valid.read_volatile() };
        // SAFETY: as for the first read.
        let registers = unsafe { general.read_volatile() };
        // SAFETY: as for the first read.
        unsafe { valid.write_volatile(theirs | GENERAL) };
        let acted = act();
        // SAFETY: as for the first read.
        unsafe { valid.write_volatile(theirs) };
        if theirs & GENERAL == 0 {
            // SAFETY: as for the first read.
            unsafe { general.write_volatile(registers) };
        }
        acted
    }
}

impl Drop for SharedPage {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and nobody uses it after the drop.
        unsafe { libc::munmap(self.0.as_ptr().cast(), SIZE) };
    }
}

/// A bit of `kvm_run.flags` that the kernel never sets and the gate does not use: the mark of
/// [`SharedPage::mark`]. A `KVM_RUN` that reaches the vCPU rewrites the flags, even if it fails.
const NOT_RUN: u16 = 1 << 13;

/// The bit of `kvm_valid_regs` for the general registers.
const GENERAL: u64 = KVM_SYNC_X86_REGS as u64;
