//! Unsafe: changes the thread's signal mask.
//!
//! Threads that this crate starts receive none of the process's signals: the VMM may wait for a signal in a
//! thread of its own, or may have blocked the signal in all its threads but one.
#![expect(unsafe_code, reason = "pthread_sigmask has no safe form")]

use std::mem;
use std::ptr;

/// Calls `act` while this thread blocks all signals. A thread that `act` starts inherits the blocked mask
/// from its first instruction on.
pub fn while_blocked<T>(act: impl FnOnce() -> T) -> T {
    // SAFETY: a sigset_t consists of integers, so zero is a valid value; sigfillset fills it.
    let mut all: libc::sigset_t = unsafe { mem::zeroed() };
    // SAFETY: the pointer is to the local variable `all`.
    unsafe { libc::sigfillset(&raw mut all) };
    let mut before = all;
    // SAFETY: both pointers are to local variables; the call changes only this thread's mask.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const all, &raw mut before) };
    let done = act();
    // SAFETY: `before` is the mask that the call above stored.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const before, ptr::null_mut()) };
    done
}
