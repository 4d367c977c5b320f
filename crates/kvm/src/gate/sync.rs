//! Atomics and locks. Tests under `--cfg loom` use loom's own types, so that loom can try all orders of
//! accesses; all other builds use the types of `std`.

#[cfg(all(test, loom))]
pub(super) use loom::sync::Mutex;
#[cfg(all(test, loom))]
pub(super) use loom::sync::atomic::{AtomicU64, Ordering};
#[cfg(not(all(test, loom)))]
pub(super) use std::sync::Mutex;
#[cfg(not(all(test, loom)))]
pub(super) use std::sync::atomic::{AtomicU64, Ordering};

/// Runs `body` under all interleavings and reorderings that loom knows, with up to three preemptions. Loom
/// detects that two accesses depend on each other only by the last access to each word, so a thread's own
/// load can hide the load of another thread. So a person who writes such a test has to break the tested code
/// once, and see that the test then fails.
#[cfg(all(test, loom))]
pub(super) fn check(body: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(body);
}
