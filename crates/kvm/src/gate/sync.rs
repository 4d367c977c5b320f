//! Atomics and locks that loom can watch: its own in tests under `--cfg loom`, else those of `std`.

#[cfg(all(test, loom))]
pub(super) use loom::sync::Mutex;
#[cfg(all(test, loom))]
pub(super) use loom::sync::atomic::{AtomicU64, Ordering};
#[cfg(not(all(test, loom)))]
pub(super) use std::sync::Mutex;
#[cfg(not(all(test, loom)))]
pub(super) use std::sync::atomic::{AtomicU64, Ordering};

/// The interleavings and reorderings that loom has, with up to three preemptions. Loom knows that two
/// accesses depend on each other by the last one to each word only: a thread's own load can hide that of
/// another, so see that a model fails with what it models taken out.
#[cfg(all(test, loom))]
pub(super) fn check(body: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(body);
}
