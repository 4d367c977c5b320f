//! A clock that a test sets ahead, so that the test does not wait for seconds.

use std::cell::Cell;
use std::time::{Duration, Instant};

thread_local! {
    static AHEAD: Cell<Duration> = const { Cell::new(Duration::ZERO) };
}

/// Returns the real time plus the time by which this thread's test has set its clock ahead.
pub(super) fn now() -> Instant {
    Instant::now() + ahead()
}

/// Returns how far this thread's clock is ahead of the real one.
pub(super) fn ahead() -> Duration {
    AHEAD.get()
}

/// Sets this thread's clock ahead by the duration `by`.
pub(super) fn advance(by: Duration) {
    AHEAD.set(ahead() + by);
}
