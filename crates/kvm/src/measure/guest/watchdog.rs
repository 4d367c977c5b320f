//! Unsafe: POSIX timers, which are handles to kernel objects.
//!
//! A timer that interrupts this thread's `KVM_RUN` if the guest does not exit by itself.
#![expect(
    unsafe_code,
    reason = "timer_create, timer_settime and timer_delete have no safe form"
)]

use std::ffi::{c_int, c_void};
use std::mem;
use std::ptr;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use vmm_sys_util::errno::Error;
use vmm_sys_util::signal::{SIGRTMIN, register_signal_handler, unblock_signal};

use crate::errno::CallErrno;

/// The number of the watchdog's signal, counted from the first real-time signal. The signal's handler does
/// nothing: the signal only has to interrupt the system call.
const SIGNAL: c_int = 7;

/// The interval at which the timer repeats the signal. One signal is not enough, because it may arrive just
/// before the system call that it has to interrupt.
const AGAIN: Duration = Duration::from_millis(50);

/// A running timer, which stops when it is dropped.
pub(super) struct Watchdog {
    timer: libc::timer_t,
    /// The time at which the guest has run for as long as it may; `None` if that time is beyond the clock's
    /// range.
    end: Option<Instant>,
}

impl Watchdog {
    /// Starts a timer that interrupts this thread after `patience`, and then repeatedly until it is
    /// dropped.
    ///
    /// # Errors
    /// Returns the kernel's error number if there is no timer left.
    pub(super) fn start(patience: Duration) -> Result<Self, CallErrno> {
        let signal = signal()?;
        // SAFETY: gettid(2) takes no argument and cannot fail.
        let thread = unsafe { libc::gettid() };
        // SAFETY: a sigevent consists of integers and pointers, for all of which zero is a valid value.
        let mut event: libc::sigevent = unsafe { mem::zeroed() };
        event.sigev_notify = libc::SIGEV_THREAD_ID;
        event.sigev_signo = signal;
        event.sigev_notify_thread_id = thread;
        let mut timer: libc::timer_t = ptr::null_mut();
        // SAFETY: timer_create(2) reads `event` and writes `timer`, which are local variables. The thread
        // that the timer signals is this one.
        if unsafe { libc::timer_create(libc::CLOCK_MONOTONIC, &raw mut event, &raw mut timer) } != 0
        {
            return Err(CallErrno::last());
        }
        let watchdog = Self {
            timer,
            end: Instant::now().checked_add(patience),
        };
        let schedule = libc::itimerspec {
            it_interval: timespec(AGAIN),
            it_value: timespec(patience),
        };
        // SAFETY: timer_settime(2) reads `schedule`. The timer was created above and is deleted only when
        // `watchdog` is dropped. A null pointer means that the old times are not returned.
        match unsafe { libc::timer_settime(timer, 0, &raw const schedule, ptr::null_mut()) } {
            0 => Ok(watchdog),
            _ => Err(CallErrno::last()),
        }
    }

    /// Returns true if the time for which the timer was started is over.
    pub(super) fn has_barked(&self) -> bool {
        self.end.is_some_and(|end| Instant::now() >= end)
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        // SAFETY: timer_delete(2) of a timer that `start` created and that no other code knows.
        unsafe { libc::timer_delete(self.timer) };
    }
}

/// Installs a handler for the watchdog's signal, unblocks the signal in this thread, and returns the
/// signal's number.
fn signal() -> Result<c_int, CallErrno> {
    static HANDLER: OnceLock<Result<(), Error>> = OnceLock::new();
    let number = SIGRTMIN() + SIGNAL;
    (*HANDLER.get_or_init(|| register_signal_handler(number, ignore)))?;
    unblock_signal(number).map_err(|_| CallErrno::last())?;
    Ok(number)
}

extern "C" fn ignore(_: c_int, _: *mut libc::siginfo_t, _: *mut c_void) {}

fn timespec(time: Duration) -> libc::timespec {
    // An `it_value` of zero would disarm the timer.
    let time = time.max(Duration::from_nanos(1));
    libc::timespec {
        tv_sec: time.as_secs().try_into().unwrap_or(libc::time_t::MAX),
        tv_nsec: time.subsec_nanos().into(),
    }
}
