//! Unsafe: physical memory, which the hypervisor's page table maps one to one.
#![expect(unsafe_code, reason = "this file is the hypervisor's access to memory")]

use core::ops::Range;
use core::ptr;

use msrgate_svm::memory::{Memory, is_guests};

/// The machine's memory outside of the hypervisor's own pages.
pub(crate) struct Physical;

impl Memory for Physical {
    fn read(&self, address: u64, bytes: &mut [u8]) -> Option<()> {
        let from = pointer(address, bytes.len())?;
        // SAFETY: `pointer` checked that the bytes are mapped and are not the hypervisor's own, so `bytes` is
        // elsewhere. Other processors may write there: the copy then has a mix, as a guest's own read.
        unsafe { ptr::copy_nonoverlapping(from, bytes.as_mut_ptr(), bytes.len()) };
        Some(())
    }

    fn write(&mut self, address: u64, bytes: &[u8]) -> Option<()> {
        let to = pointer(address, bytes.len())?;
        // SAFETY: as above. `bytes` may lie in the archive, which the caller does not overwrite (`boot`).
        unsafe { ptr::copy(bytes.as_ptr(), to, bytes.len()) };
        Some(())
    }
}

impl Physical {
    /// Returns the bytes of `range`, before the guest starts.
    pub(crate) fn bytes(range: &Range<u64>) -> Option<&'static [u8]> {
        let len = usize::try_from(range.end.checked_sub(range.start)?).ok()?;
        let from = pointer(range.start, len)?;
        // SAFETY: the bytes are mapped. The boot loader put the archive there, and until the guest starts only
        // `boot` writes to memory, never to the archive.
        Some(unsafe { core::slice::from_raw_parts(from, len) })
    }
}

/// Reads a 32-bit register of a device.
pub(crate) fn read_device(address: u64) -> Option<u32> {
    let from = register(address)?;
    // SAFETY: the address is mapped and a multiple of 4; a device answers.
    Some(unsafe { from.read_volatile() })
}

/// Writes to a 32-bit register of a device.
pub(crate) fn write_device(address: u64, value: u32) -> Option<()> {
    let to = register(address)?;
    // SAFETY: as above; the guest asked for the effect on the device, or `processors` starts a processor.
    unsafe { to.write_volatile(value) };
    Some(())
}

/// Returns the pointer to a device's register of 32 bits.
fn register(address: u64) -> Option<*mut u32> {
    let is_register = address.is_multiple_of(4) && is_guests(address, 4);
    is_register.then(|| ptr::with_exposed_provenance_mut(usize::try_from(address).unwrap_or(0)))
}

/// Returns the pointer to physical memory, unless it is the hypervisor's own or not mapped.
fn pointer(address: u64, len: usize) -> Option<*mut u8> {
    let is_free = address != 0 && is_guests(address, len as u64);
    is_free.then(|| ptr::with_exposed_provenance_mut(usize::try_from(address).unwrap_or(0)))
}
