//! Unsafe: maps and unmaps anonymous memory, and gives access to it as atomic words.
//!
//! Two kinds of memory need this: a guest's memory, which the guest reads and writes while this process
//! holds it, and a buffer that ends at an unreadable page.
#![expect(unsafe_code, reason = "mmap, munmap and mprotect have no safe form")]

use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::errno::{CallErrno, RawErrno};

/// The size of a page in bytes. All mappings of this module are whole pages.
pub(crate) const PAGE: usize = 0x1000;

/// A private anonymous memory mapping. The mapping is zeroed at first, readable and writable; it is
/// unmapped when this value is dropped.
#[derive(Debug)]
pub(crate) struct Memory {
    start: NonNull<AtomicU64>,
    /// The number of bytes, from the start, that this process can read and write: the whole mapping, or, if
    /// its last page was made unreadable, the pages before that page.
    open: usize,
    bytes: usize,
}

// SAFETY: the mapping belongs to the process, not to a thread; any thread may unmap it.
unsafe impl Send for Memory {}

// SAFETY: through a shared reference only `words` reaches the memory, and only as atomics.
unsafe impl Sync for Memory {}

impl Memory {
    /// Maps `pages` pages.
    ///
    /// # Errors
    /// Returns the kernel's error number if the kernel has no memory or no address range left.
    pub(crate) fn new(pages: usize) -> Result<Self, CallErrno> {
        let bytes = pages * PAGE;
        // SAFETY: mmap(2) without an address hint and without a file changes no existing mapping. The
        // result is compared with MAP_FAILED before it is used.
        let start = unsafe {
            libc::mmap(
                ptr::null_mut(),
                bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(CallErrno::last());
        }
        let start = NonNull::new(start.cast()).ok_or(RawErrno::new(libc::ENOMEM))?;
        Ok(Self {
            start,
            open: bytes,
            bytes,
        })
    }

    /// The part of the memory that can be read and written, as words. The words are atomics, because a vCPU
    /// or the kernel may write to them at the same time.
    pub(crate) fn words(&self) -> &[AtomicU64] {
        // SAFETY: the mapping is page-aligned, was zeroed by the kernel, is readable and writable for
        // `open` bytes, and lives as long as `self`. Any bytes are a valid AtomicU64.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.open / 8) }
    }

    /// Makes the last page of the mapping unreadable.
    fn close_last_page(&mut self) -> Result<(), CallErrno> {
        self.open = self.bytes - PAGE;
        let last = (self.address() + self.open) as *mut libc::c_void;
        // SAFETY: mprotect(2) changes the last page of a mapping that only `self` owns. `words` ends
        // before that page from here on, and the exclusive borrow rules out an earlier slice.
        match unsafe { libc::mprotect(last, PAGE, libc::PROT_NONE) } {
            0 => Ok(()),
            _ => Err(CallErrno::last()),
        }
    }

    /// The address of the mapping in this process.
    pub(crate) fn address(&self) -> usize {
        self.start.as_ptr() as usize
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: munmap(2) unmaps exactly what `new` mapped; every reference into it borrowed `self`.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.bytes) };
    }
}

/// A buffer whose last byte is the last byte before an unreadable page.
#[derive(Debug)]
pub(crate) struct UnreadableEnd {
    memory: Memory,
    content: usize,
}

impl UnreadableEnd {
    /// Copies `content` to the end of a new mapping, directly before its unreadable page.
    ///
    /// # Errors
    /// Returns the errors of [`Memory::new`].
    pub(crate) fn after(content: &[u8]) -> Result<Self, CallErrno> {
        let mut memory = Memory::new(content.len().div_ceil(PAGE) + 1)?;
        memory.close_last_page()?;
        for (word, chunk) in memory.words().iter().rev().zip(content.rchunks(8)) {
            let mut bytes = [0; 8];
            bytes[8 - chunk.len()..].copy_from_slice(chunk);
            word.store(u64::from_le_bytes(bytes), Ordering::Relaxed);
        }
        let content = content.len();
        Ok(Self { memory, content })
    }

    /// The address of the content. Without content, this is the address of the unreadable page.
    pub(crate) fn address(&self) -> usize {
        self.memory.address() + self.memory.open - self.content
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffer_of_any_length_ends_directly_before_unreadable_page() {
        for length in [0_usize, 1, 7, 8, 9, 0x600, PAGE, PAGE + 3] {
            let content: Vec<u8> = (1..=0xff).cycle().take(length).collect();
            let placed = UnreadableEnd::after(&content).unwrap();
            assert_eq!((placed.address() + length) % PAGE, 0);
            let words = placed.memory.words();
            let bytes: Vec<u8> = words
                .iter()
                .flat_map(|word| word.load(Ordering::Relaxed).to_le_bytes())
                .collect();
            assert!(bytes.ends_with(&content));
        }
    }
}
