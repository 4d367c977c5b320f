//! The library's own descriptors. Their numbers are high, so that the VMM gets the numbers that it would get
//! without the library.

use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd, RawFd};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::process;
use crate::sys;
use crate::table::FDS;

const BITS: usize = u64::BITS as usize;

/// The set of the numbers of the library's own descriptors that are below [`FDS`].
pub(crate) struct OwnFds([AtomicU64; FDS / BITS]);

impl OwnFds {
    pub(crate) const fn new() -> Self {
        Self([const { AtomicU64::new(0) }; FDS / BITS])
    }

    fn place(&self, fd: RawFd) -> Option<(&AtomicU64, u64)> {
        let at = usize::try_from(fd).ok()?;
        Some((self.0.get(at / BITS)?, 1 << (at % BITS)))
    }

    /// Returns true if the number is one of the library's own.
    pub(crate) fn has(&self, fd: RawFd) -> bool {
        self.place(fd)
            .is_some_and(|(word, bit)| word.load(Ordering::Relaxed) & bit != 0)
    }

    /// Returns how many descriptors the library itself has open.
    pub(crate) fn count(&self) -> u64 {
        let words = self.0.iter().map(|word| word.load(Ordering::Relaxed));
        words.map(|word| u64::from(word.count_ones())).sum()
    }

    /// Returns the numbers of the library's own descriptors.
    fn numbers(&self) -> impl Iterator<Item = RawFd> {
        let words = self.0.iter().map(|word| word.load(Ordering::Relaxed));
        let bits = |word: u64| (0..BITS).map(move |bit| word >> bit & 1 == 1);
        let all = (0..).zip(words.flat_map(bits));
        all.filter(|(_, is_own)| *is_own).map(|(fd, _)| fd)
    }

    /// Closes a forked child's copies of the library's own descriptors, which are of VMs and vCPUs. The VMM
    /// may have opened a file of its own under one of the numbers: the function does not close that file.
    /// The function takes no lock and allocates nothing.
    pub(crate) fn close_in_child(&self) {
        for fd in self.numbers().filter(|fd| sys::is_of_kvm(*fd)) {
            sys::close(fd);
        }
    }

    fn add(&self, fd: RawFd) {
        if let Some((word, bit)) = self.place(fd) {
            word.fetch_or(bit, Ordering::Relaxed);
        }
    }

    /// Removes a number from the set of the library's own descriptors. The function takes no lock and
    /// allocates nothing.
    #[inline]
    pub(crate) fn remove(&self, fd: RawFd) {
        if let Some((word, bit)) = self.place(fd)
            && word.load(Ordering::Relaxed) & bit != 0
        {
            word.fetch_and(!bit, Ordering::Relaxed);
        }
    }
}

/// Duplicates a descriptor for the library: under a number of at least [`sys::lowest_fd`], or else under the
/// highest free number. A VMM may have a low limit of descriptors, or lower it later.
pub(crate) fn duplicate(fd: RawFd) -> io::Result<OwnedFd> {
    let first = sys::lowest_fd().min(sys::fd_limit() - 1);
    let mut numbers = (0..=first).rev();
    let duplicated = numbers.find_map(|lowest| match sys::duplicate(fd, lowest) {
        // No number from `lowest` on is free, or the limit has changed.
        Err(error) if matches!(error.raw_os_error(), Some(libc::EMFILE | libc::EINVAL)) => None,
        result => Some(result),
    });
    let own = duplicated.unwrap_or_else(|| Err(io::Error::from_raw_os_error(libc::EMFILE)))?;
    if let Some(process) = process::known() {
        process.table.own.add(own.as_raw_fd());
    }
    Ok(own)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptor_number_counts_as_one_of_library_until_it_is_removed() {
        let own = OwnFds::new();
        for fd in [0, 63, 64, 65_535] {
            own.add(fd);
            assert!(own.has(fd) && !own.has(fd + 1));
            assert_eq!(own.count(), 1);
            own.remove(fd);
            assert!(!own.has(fd));
        }
        own.add(65_536);
        assert!(!own.has(65_536) && !own.has(-1));
    }
}
