//! Unsafe: fcntl(2)'s leases.
//!
//! A test whether another process has a file open for writing, or mapped. The kernel grants no write lease
//! on a file while another open file description of the file is writable, and a mapping keeps its file
//! description open. By this test the watcher needs no process IDs, which differ between PID namespaces.
#![expect(unsafe_code, reason = "F_SETLEASE has no safe form")]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd as _;

/// The result of the test whether other processes use a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Others {
    /// Another process has the file open for writing, or mapped.
    Some,
    /// No other process has the file open for writing or mapped.
    None,
    /// The file system supports no leases, so the test has no result.
    Unknown,
}

/// Asks the kernel whether other processes use a file that this process has open for writing exactly once.
///
/// If another process opens the file during the test, the kernel sends SIGIO to this process. The caller
/// must ignore SIGIO.
pub(super) fn others(file: &File) -> Others {
    // SAFETY: F_SETLEASE takes numbers.
    if unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETLEASE, libc::F_WRLCK) } == 0 {
        // SAFETY: F_SETLEASE takes numbers. Giving a lease back does not fail.
        unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETLEASE, libc::F_UNLCK) };
        return Others::None;
    }
    match io::Error::last_os_error().raw_os_error() {
        Some(libc::EAGAIN) => Others::Some,
        _ => Others::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(path: &std::path::Path) -> File {
        File::options().read(true).write(true).open(path).unwrap()
    }

    #[test]
    fn lease_shows_another_file_description_while_it_is_open() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("page");
        File::create(&path).unwrap();
        let own = open(&path);
        assert_eq!(others(&own), Others::None);
        let second = open(&path);
        assert_eq!(others(&own), Others::Some);
        drop(second);
        assert_eq!(others(&own), Others::None);
    }
}
