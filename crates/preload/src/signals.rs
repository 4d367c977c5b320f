//! Unsafe: asks for the actions of signals.
//!
//! The VMM's signals: the helper thread must take none of them, and a vCPU's thread must not swallow a kick
//! by one.
#![expect(unsafe_code, reason = "sigaction(2) has no safe form")]

use std::ffi::c_int;
use std::mem;
use std::ptr;

/// Returns true if the process catches a signal with which a vCPU may be kicked: any signal that the C
/// library reports, except those that an instruction raises. The C library does not report the signals that
/// it reserves.
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
