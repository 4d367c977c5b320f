//! Unsafe: the thread's signal mask.
//!
//! Signals of the VMM's: our thread takes none of them, and a vCPU's thread must not swallow a kick by one.
#![expect(unsafe_code, reason = "pthread_sigmask has no safe form")]

use std::ffi::c_int;
use std::mem;
use std::ptr;

/// Does something, such as making a thread, while this thread blocks all signals. A thread that is made meanwhile
/// blocks them from its first instruction on.
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

/// Tells if the process catches a signal by which a vCPU may be kicked: any but those that an instruction raises. Those that
/// the C library keeps for itself it does not tell of.
pub(crate) fn are_caught() -> bool {
    (1..=LAST).any(|signal| !OF_INSTRUCTIONS.contains(&signal) && is_caught(signal))
}

fn is_caught(signal: c_int) -> bool {
    // SAFETY: a sigaction is integers and an address, for which zeros are values.
    let mut action: libc::sigaction = unsafe { mem::zeroed() };
    // SAFETY: it writes the action that there is, and sets none.
    let failed = unsafe { libc::sigaction(signal, ptr::null(), &raw mut action) } != 0;
    !failed && ![libc::SIG_DFL, libc::SIG_IGN].contains(&action.sa_sigaction)
}

const LAST: c_int = 64;

const OF_INSTRUCTIONS: [c_int; 7] = [
    libc::SIGILL,
    libc::SIGTRAP,
    libc::SIGABRT,
    libc::SIGBUS,
    libc::SIGFPE,
    libc::SIGSEGV,
    libc::SIGSYS,
];
