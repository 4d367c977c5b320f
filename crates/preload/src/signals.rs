//! Unsafe: the thread's signal mask.
//!
//! Signals of the VMM's: our thread takes none of them, and a vCPU's thread must not swallow a kick by one.
#![expect(unsafe_code, reason = "pthread_sigmask has no safe form")]

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

/// Tells if the process catches a signal by which a vCPU may be kicked: any but those that an instruction raises, and
/// those that the C library keeps for itself. True where nobody can tell.
pub(crate) fn are_caught() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:"));
    let caught = caught.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    caught.is_none_or(|mask| mask & !OF_INSTRUCTIONS & !OF_C_LIBRARY != 0)
}

const OF_INSTRUCTIONS: u64 = bit(libc::SIGILL)
    | bit(libc::SIGTRAP)
    | bit(libc::SIGBUS)
    | bit(libc::SIGFPE)
    | bit(libc::SIGSEGV)
    | bit(libc::SIGSYS)
    | bit(libc::SIGABRT);

/// Those below `SIGRTMIN`, which musl has one higher than glibc.
const OF_C_LIBRARY: u64 = if cfg!(target_env = "musl") {
    bit(32) | bit(33) | bit(34)
} else {
    bit(32) | bit(33)
};

const fn bit(signal: i32) -> u64 {
    1 << (signal - 1)
}
