//! Unsafe: runs code before `main`, and uses descriptors by their numbers.
//!
//! The descriptors that msrgate was started with.
//!
//! The standard library opens `/dev/null` in place of a closed descriptor 0, 1 or 2 before `main` begins.
//! Only code that runs before that can see which of these descriptors were closed.

#![expect(
    unsafe_code,
    reason = "code before main, and a descriptor that is known by its number, have no safe form"
)]

use std::fs::File;
use std::io;
use std::os::fd::{FromRawFd as _, RawFd};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

pub(crate) const STDIN: RawFd = 0;
pub(crate) const STDOUT: RawFd = 1;

/// True for each of the descriptors 0, 1 and 2 that was closed when msrgate was started.
static CLOSED: [AtomicBool; 3] = [const { AtomicBool::new(false) }; 3];

/// The handling of SIGPIPE (`SIG_DFL`, `SIG_IGN`) when msrgate was started. Rust's standard library sets it
/// to `SIG_IGN` before `main` begins.
static SIGPIPE: AtomicUsize = AtomicUsize::new(libc::SIG_DFL);

/// The function [`note_closed`], in a section whose functions the C library calls before `main`.
#[used]
#[unsafe(link_section = ".init_array")]
static BEFORE_MAIN: extern "C" fn() = note_closed;

extern "C" fn note_closed() {
    for (number, closed) in (STDIN..).zip(&CLOSED) {
        // SAFETY: F_GETFD takes any number, and accesses no memory.
        let flags = unsafe { libc::fcntl(number, libc::F_GETFD) };
        closed.store(flags < 0, Ordering::Relaxed);
    }
    // SAFETY: SIG_DFL sets no handler; the previous disposition is put back at once.
    let before = unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
    if before != libc::SIG_ERR {
        SIGPIPE.store(before, Ordering::Relaxed);
        // SAFETY: `before` is the disposition that the process had.
        unsafe { libc::signal(libc::SIGPIPE, before) };
    }
}

/// Undoes two changes that Rust's standard library made before `main`, for a program that is about to
/// replace this process: closes the descriptors that were closed when msrgate was started, and gives SIGPIPE
/// the handling that it had then.
pub(crate) fn as_before_main() {
    for (number, closed) in (STDIN..).zip(&CLOSED) {
        if closed.load(Ordering::Relaxed) {
            // SAFETY: the descriptor is the standard library's `/dev/null`, which no value owns.
            unsafe { libc::close(number) };
        }
    }
    // SAFETY: `SIGPIPE` has the disposition at msrgate's start. It is no handler, because execve(2) keeps no
    // handlers.
    unsafe { libc::signal(libc::SIGPIPE, SIGPIPE.load(Ordering::Relaxed)) };
}

/// Duplicates a descriptor. The original and the duplicate share the position in the file and the file's
/// flags.
///
/// # Errors
/// EBADF: the descriptor is not open, or was closed when msrgate was started.
pub(crate) fn duplicate(number: RawFd) -> io::Result<File> {
    let index = usize::try_from(number).ok();
    let closed = index.and_then(|index| CLOSED.get(index));
    if closed.is_some_and(|closed| closed.load(Ordering::Relaxed)) {
        return Err(io::Error::from_raw_os_error(libc::EBADF));
    }
    // SAFETY: F_DUPFD_CLOEXEC takes any number, and accesses no memory.
    let copy = unsafe { libc::fcntl(number, libc::F_DUPFD_CLOEXEC, 3) };
    if copy < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just opened `copy`, and nothing else owns it.
    Ok(unsafe { File::from_raw_fd(copy) })
}
