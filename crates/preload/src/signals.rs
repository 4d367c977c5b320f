//! Unsafe: asks for the actions of signals, and changes a thread's mask.
//!
//! The handling of the VMM's signals. The library's helper thread must receive none of the VMM's signals,
//! and a signal that is meant to make `KVM_RUN` return must have that effect.
#![expect(unsafe_code, reason = "sigaction(2) has no safe form")]

use std::ffi::c_int;
use std::mem;
use std::ptr;

/// The signals that a thread blocks.
pub(crate) struct Mask(libc::sigset_t);

impl Mask {
    /// Returns the mask of the calling thread.
    pub(crate) fn of_this_thread() -> Self {
        // SAFETY: a sigset_t consists of integers, for which zeros are values.
        let mut mask: libc::sigset_t = unsafe { mem::zeroed() };
        // SAFETY: the call writes the present mask into `mask`, and sets none.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, ptr::null(), &raw mut mask) };
        Self(mask)
    }

    /// Makes this mask the signal mask of the calling thread.
    pub(crate) fn set(&self) {
        // SAFETY: the call reads the mask, and changes only this thread's.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const self.0, ptr::null_mut()) };
    }
}

/// Returns true if the process has a handler for a signal with which it may make `KVM_RUN` return: any
/// signal except those that an instruction raises and those that the C library keeps for itself.
pub(crate) fn are_caught() -> bool {
    (1..=LAST).any(|signal| !OF_INSTRUCTIONS.contains(&signal) && is_caught(signal))
}

fn is_caught(signal: c_int) -> bool {
    // SAFETY: a sigaction consists of integers and an address, for which zeros are values.
    let mut action: libc::sigaction = unsafe { mem::zeroed() };
    // SAFETY: the call writes the present action into `action`, and sets none.
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
