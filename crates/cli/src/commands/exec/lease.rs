//! Unsafe: fcntl(2)'s leases.
//!
//! The question if anybody else has a file open for writing, or mapped. The kernel gives a write lease on a file to
//! nobody while another open file description of it is writable, and a mapping keeps its description open. So the
//! watcher needs no process IDs, which mean other processes in another PID namespace.
#![expect(unsafe_code, reason = "F_SETLEASE has no safe form")]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd as _;

/// The users of a file beside this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Others {
    /// Another process has the file open or mapped.
    Some,
    /// No other process has it.
    None,
    /// The file system gives no leases.
    Unknown,
}

/// Asks the kernel for the other users of a file that this process has open for writing, once.
///
/// A process that opens the file at this moment makes the kernel send SIGIO, which the caller ignores.
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
    fn other_description_is_seen_while_it_is_open() {
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
