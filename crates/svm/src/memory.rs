//! Physical memory, as the parts of the hypervisor that need no hardware see it.

use core::ops::Range;

/// The physical addresses of the hypervisor's own pages. The guest cannot reach them: nested paging has no
/// page there, and the memory map that the guest gets says that they are reserved.
///
/// The linker script puts the program here.
pub const OWN: Range<u64> = 0x20_0000..0x40_0000;

/// The end of the memory that the hypervisor reaches: its page table maps so much, one to one.
pub const END: u64 = 512 << 30;

/// Access to physical memory outside of the hypervisor's own pages.
pub trait Memory {
    /// Fills `bytes` from the memory at `address`. Returns `None`, and fills nothing, if a byte belongs to
    /// the hypervisor or lies behind [`END`].
    fn read(&self, address: u64, bytes: &mut [u8]) -> Option<()>;

    /// Copies `bytes` to the memory at `address`. Returns `None`, and writes nothing, in the same cases as
    /// [`Self::read`].
    fn write(&mut self, address: u64, bytes: &[u8]) -> Option<()>;

    /// Reads a byte.
    fn u8(&self, address: u64) -> Option<u8> {
        let mut bytes = [0; 1];
        self.read(address, &mut bytes)?;
        Some(bytes[0])
    }

    /// Reads 32 bits, little-endian.
    fn u32(&self, address: u64) -> Option<u32> {
        let mut bytes = [0; 4];
        self.read(address, &mut bytes)?;
        Some(u32::from_le_bytes(bytes))
    }

    /// Reads 64 bits, little-endian.
    fn u64(&self, address: u64) -> Option<u64> {
        let mut bytes = [0; 8];
        self.read(address, &mut bytes)?;
        Some(u64::from_le_bytes(bytes))
    }
}

/// Returns true if the `len` bytes from `address` on are neither the hypervisor's nor behind [`END`].
#[must_use]
pub fn is_guests(address: u64, len: u64) -> bool {
    address
        .checked_add(len)
        .is_some_and(|end| end <= END && (end <= OWN.start || OWN.end <= address))
}

#[cfg(test)]
pub(crate) mod tests {
    use std::vec;
    use std::vec::Vec;

    use super::{Memory, OWN, is_guests};

    /// Memory of a test, from address 0 on.
    pub(crate) struct Ram(pub(crate) Vec<u8>);

    impl Ram {
        pub(crate) fn of_mib(mib: usize) -> Self {
            Self(vec![0; mib << 20])
        }

        fn place(&self, address: u64, len: usize) -> Option<core::ops::Range<usize>> {
            let start = usize::try_from(address).ok()?;
            let end = start.checked_add(len)?;
            (end <= self.0.len() && is_guests(address, len as u64)).then_some(start..end)
        }
    }

    impl Memory for Ram {
        fn read(&self, address: u64, bytes: &mut [u8]) -> Option<()> {
            let place = self.place(address, bytes.len())?;
            bytes.copy_from_slice(&self.0[place]);
            Some(())
        }

        fn write(&mut self, address: u64, bytes: &[u8]) -> Option<()> {
            let place = self.place(address, bytes.len())?;
            self.0[place].copy_from_slice(bytes);
            Some(())
        }
    }

    #[test]
    fn bytes_that_touch_hypervisors_pages_are_not_guests() {
        assert!(is_guests(OWN.start - 8, 8));
        assert!(!is_guests(OWN.start - 8, 9));
        assert!(!is_guests(OWN.end - 1, 1));
        assert!(is_guests(OWN.end, 1));
        assert!(!is_guests(u64::MAX, 2));
        assert!(!is_guests(super::END - 1, 2));
    }
}
