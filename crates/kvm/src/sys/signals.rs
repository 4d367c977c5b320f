//! Unsafe: changes the thread's signal mask.
//!
//! Threads that this crate starts receive none of the process' signals: the VMM may wait for a signal in a
//! thread of its own, or may have blocked the signal in all its threads but one.
#![expect(unsafe_code, reason = "pthread_sigmask has no safe form")]

use std::mem;
use std::ptr;

/// Calls `act` while this thread blocks all signals. A thread that `act` starts inherits the blocked mask
/// from its first instruction on.
pub(crate) fn while_blocked<T>(act: impl FnOnce() -> T) -> T {
    // SAFETY: a sigset_t is integers, for which zero is a value; sigfillset fills it.
    let mut all: libc::sigset_t = unsafe { mem::zeroed() };
    // SAFETY: the set lives here.
    unsafe { libc::sigfillset(&raw mut all) };
    let mut before = all;
    // SAFETY: both sets live here; the call changes this thread's mask only.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const all, &raw mut before) };
    let done = act();
    // SAFETY: `before` is what the call above found.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const before, ptr::null_mut()) };
    done
}
