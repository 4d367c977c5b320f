//! Unsafe: ioctl(2), by the C library's function or by one in its place.
//!
//! The one way of this crate to ioctl(2). A library that stands in for `ioctl` in somebody else's process, as
//! `msrgate-preload` does, would call itself by the C library's name for it: it says here what to call instead.
#![expect(unsafe_code, reason = "ioctl(2) takes whatever its request says")]

use std::ffi::{c_int, c_ulong, c_void};
use std::os::fd::{AsRawFd, RawFd};
use std::sync::OnceLock;

/// A function that does what ioctl(2) of the C library does, `errno` included.
pub type IoctlFn = unsafe extern "C" fn(c_int, c_ulong, *mut c_void) -> c_int;

/// How a library makes the calls of this crate.
#[derive(Clone, Copy, Debug)]
pub struct OwnCalls {
    /// The function for ioctl(2).
    pub ioctl: IoctlFn,
    /// The lowest number that a file descriptor of the crate's own may have: the process finds those below free,
    /// as if there were no gate.
    pub lowest_fd: RawFd,
}

static OWN: OnceLock<OwnCalls> = OnceLock::new();

/// Has this crate make its calls in this way from now on. Of several calls of this the first one holds.
///
/// # Safety
/// `calls.ioctl` does what ioctl(2) does, and touches no other memory than that would.
pub unsafe fn make_calls_by(calls: OwnCalls) {
    let _ = OWN.set(calls);
}

/// The lowest number for file descriptors that the crate keeps.
pub(crate) fn lowest_fd() -> RawFd {
    OWN.get().map_or(0, |calls| calls.lowest_fd)
}

/// Makes the call.
///
/// # Safety
/// As ioctl(2): `argument` is what `request` asks for.
unsafe fn call(fd: &impl AsRawFd, request: c_ulong, argument: *mut c_void) -> c_int {
    match OWN.get() {
        // SAFETY: `make_calls_by`'s caller answers for the function, and ours for the argument.
        Some(calls) => unsafe { (calls.ioctl)(fd.as_raw_fd(), request, argument) },
        // SAFETY: our caller answers for the argument.
        None => unsafe { libc::ioctl(fd.as_raw_fd(), request, argument) },
    }
}

/// A request without an argument.
///
/// # Safety
/// As [`call`].
pub(crate) unsafe fn ioctl(fd: &impl AsRawFd, request: c_ulong) -> c_int {
    // SAFETY: our caller's.
    unsafe { call(fd, request, std::ptr::null_mut()) }
}

/// A request that takes a number.
///
/// # Safety
/// As [`call`].
pub(crate) unsafe fn ioctl_with_val(fd: &impl AsRawFd, request: c_ulong, value: c_ulong) -> c_int {
    let value = std::ptr::without_provenance_mut(usize::try_from(value).unwrap_or(usize::MAX));
    // SAFETY: our caller's.
    unsafe { call(fd, request, value) }
}

/// A request that reads what is there.
///
/// # Safety
/// As [`call`].
pub(crate) unsafe fn ioctl_with_ref<T>(fd: &impl AsRawFd, request: c_ulong, value: &T) -> c_int {
    // SAFETY: our caller's.
    unsafe { ioctl_with_ptr(fd, request, value) }
}

/// A request that reads and writes what is there.
///
/// # Safety
/// As [`call`].
pub(crate) unsafe fn ioctl_with_mut_ref<T>(
    fd: &impl AsRawFd,
    request: c_ulong,
    value: &mut T,
) -> c_int {
    // SAFETY: our caller's.
    unsafe { ioctl_with_mut_ptr(fd, request, value) }
}

/// A request that reads what a pointer leads to.
///
/// # Safety
/// As [`call`].
pub(crate) unsafe fn ioctl_with_ptr<T>(
    fd: &impl AsRawFd,
    request: c_ulong,
    value: *const T,
) -> c_int {
    // SAFETY: our caller's.
    unsafe { call(fd, request, value.cast_mut().cast()) }
}

/// A request that reads and writes what a pointer leads to.
///
/// # Safety
/// As [`call`].
pub(crate) unsafe fn ioctl_with_mut_ptr<T>(
    fd: &impl AsRawFd,
    request: c_ulong,
    value: *mut T,
) -> c_int {
    // SAFETY: our caller's.
    unsafe { call(fd, request, value.cast()) }
}
