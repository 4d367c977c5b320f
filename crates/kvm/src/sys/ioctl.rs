//! Unsafe: ioctl(2), by the C library's function or by a replacement.
//!
//! The functions in this file make all ioctl(2) calls of this crate. A library that replaces the C
//! library's `ioctl` in a VMM's process, as `msrgate-preload` does, would call itself if it called
//! `ioctl` by its name. So such a library gives this crate another function to call.
#![expect(unsafe_code, reason = "ioctl(2) takes whatever its request says")]

use std::ffi::{c_int, c_ulong, c_void};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd as _, OwnedFd, RawFd};
use std::sync::OnceLock;

/// A function with the contract of the C library's ioctl(2), including `errno`.
pub type IoctlFn = unsafe extern "C" fn(c_int, c_ulong, *mut c_void) -> c_int;

/// The functions that a library sets in place of the C library's, for this crate's system calls.
#[derive(Clone, Copy, Debug)]
pub struct OwnCalls {
    /// The function that is called in place of the C library's ioctl(2).
    pub ioctl: IoctlFn,
    /// The function that duplicates each file descriptor that this crate keeps, and chooses the number
    /// of the duplicate.
    pub duplicate: DuplicateFn,
}

/// A function that duplicates a file descriptor, and has the duplicate closed at execve(2).
pub type DuplicateFn = fn(RawFd) -> io::Result<OwnedFd>;

static OWN: OnceLock<OwnCalls> = OnceLock::new();

/// Makes this crate use the functions in `calls` for its system calls from now on. Only the first call
/// of this function has an effect.
///
/// # Safety
/// `calls.ioctl` does what ioctl(2) does, and accesses no other memory than ioctl(2) would.
pub unsafe fn make_calls_by(calls: OwnCalls) {
    let _ = OWN.set(calls);
}

/// Duplicates a file descriptor.
pub(crate) fn duplicate(fd: &impl AsRawFd) -> io::Result<OwnedFd> {
    if let Some(calls) = OWN.get() {
        return (calls.duplicate)(fd.as_raw_fd());
    }
    // SAFETY: fcntl(2) takes numbers; it returns a new file descriptor or fails.
    let new = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_DUPFD_CLOEXEC, 0) };
    if new < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: fcntl returned a new file descriptor, which no other code knows.
    Ok(unsafe { OwnedFd::from_raw_fd(new) })
}

/// Calls ioctl(2), or its replacement.
///
/// # Safety
/// `argument` must be a valid argument of the ioctl request `request`.
unsafe fn call(fd: &impl AsRawFd, request: c_ulong, argument: *mut c_void) -> c_int {
    match OWN.get() {
        // SAFETY: the caller of `make_calls_by` is responsible for the function, and our caller for the
        // argument.
        Some(calls) => unsafe { (calls.ioctl)(fd.as_raw_fd(), request, argument) },
        // SAFETY: our caller is responsible for the argument. The C library musl takes the low half of the
        // request, which is all that the kernel looks at.
        None => unsafe { libc::ioctl(fd.as_raw_fd(), request as libc::Ioctl, argument) },
    }
}

/// Makes an ioctl request without an argument.
///
/// # Safety
/// The contract is that of [`call`].
pub(crate) unsafe fn ioctl(fd: &impl AsRawFd, request: c_ulong) -> c_int {
    // SAFETY: our caller meets the contract of `call`.
    unsafe { call(fd, request, std::ptr::null_mut()) }
}

/// Makes an ioctl request whose argument is a number.
///
/// # Safety
/// The contract is that of [`call`].
pub(crate) unsafe fn ioctl_with_val(fd: &impl AsRawFd, request: c_ulong, value: c_ulong) -> c_int {
    let value = std::ptr::without_provenance_mut(usize::try_from(value).unwrap_or(usize::MAX));
    // SAFETY: our caller meets the contract of `call`.
    unsafe { call(fd, request, value) }
}

/// Makes an ioctl request for which the kernel reads `value`.
///
/// # Safety
/// The contract is that of [`call`].
pub(crate) unsafe fn ioctl_with_ref<T>(fd: &impl AsRawFd, request: c_ulong, value: &T) -> c_int {
    // SAFETY: our caller meets the contract of `call`.
    unsafe { ioctl_with_ptr(fd, request, value) }
}

/// Makes an ioctl request for which the kernel reads and writes `value`.
///
/// # Safety
/// The contract is that of [`call`].
pub(crate) unsafe fn ioctl_with_mut_ref<T>(
    fd: &impl AsRawFd,
    request: c_ulong,
    value: &mut T,
) -> c_int {
    // SAFETY: our caller meets the contract of `call`.
    unsafe { ioctl_with_mut_ptr(fd, request, value) }
}

/// Makes an ioctl request for which the kernel reads the memory that `value` points to.
///
/// # Safety
/// The contract is that of [`call`].
pub(crate) unsafe fn ioctl_with_ptr<T>(
    fd: &impl AsRawFd,
    request: c_ulong,
    value: *const T,
) -> c_int {
    // SAFETY: our caller meets the contract of `call`.
    unsafe { call(fd, request, value.cast_mut().cast()) }
}

/// Makes an ioctl request for which the kernel reads and writes the memory that `value` points to.
///
/// # Safety
/// The contract is that of [`call`].
pub(crate) unsafe fn ioctl_with_mut_ptr<T>(
    fd: &impl AsRawFd,
    request: c_ulong,
    value: *mut T,
) -> c_int {
    // SAFETY: our caller meets the contract of `call`.
    unsafe { call(fd, request, value.cast()) }
}
