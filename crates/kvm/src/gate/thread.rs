//! The gate's own threads, which do not exist in a child of fork(2).

use std::io;
use std::mem;
use std::process;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::{Builder, JoinHandle};

use crate::sys::signals;

/// A thread, and the id of its process.
#[derive(Debug)]
pub(super) struct OwnThread<T> {
    handle: JoinHandle<T>,
    process: u32,
}

impl<T: Send + 'static> OwnThread<T> {
    /// Starts a thread of this name, in which all signals are blocked.
    pub(super) fn spawn(name: &str, body: impl FnOnce() -> T + Send + 'static) -> io::Result<Self> {
        let builder = Builder::new().name(name.into());
        let counted = move || {
            let _count = RUNNING.enter();
            body()
        };
        let handle = signals::while_blocked(|| builder.spawn(counted))?;
        Ok(Self {
            handle,
            process: process::id(),
        })
    }

    /// Tells if the thread runs in this process. In a forked child the thread does not run, and a lock that
    /// it held stays locked for ever.
    pub(super) fn is_here(&self) -> bool {
        self.process == process::id()
    }

    /// Tells if the thread has ended.
    pub(super) fn is_finished(&self) -> bool {
        self.handle.is_finished()
    }

    /// Waits for the thread to end. Returns `None` if the thread panicked, or is of another process.
    pub(super) fn join(self) -> Option<T> {
        if self.is_here() {
            self.handle.join().ok()
        } else {
            // Do not drop the handle: the drop detaches the thread, which is an error if the thread does not
            // exist in this process. Joining such a thread would wait for ever.
            mem::forget(self.handle);
            None
        }
    }
}

/// The number of threads that gates run in this process, for example those that open the filters of VMs with
/// first-access logging. A thread is counted from its first instruction to its last, so the number is never
/// higher than that of the threads that exist.
#[must_use]
pub fn own_threads() -> u32 {
    RUNNING.in_process(process::id())
}

static RUNNING: Running = Running(AtomicU64::new(0));

/// The number of running threads in the low half, and the id of their process in the high half: a forked
/// child has a copy of the number, and none of the threads.
struct Running(AtomicU64);

/// The guard of a running thread.
struct Count(&'static Running, u32);

impl Running {
    /// Returns the process's id and the number.
    fn split(word: u64) -> (u32, u32) {
        let low = |word: u64| u32::try_from(word & 0xffff_ffff).unwrap_or(0);
        (low(word >> 32), low(word))
    }

    fn in_process(&self, process: u32) -> u32 {
        let (of, count) = Self::split(self.0.load(Ordering::SeqCst));
        if of == process { count } else { 0 }
    }

    fn change(&self, process: u32, change: impl Fn(u32) -> u32) {
        let _ = self
            .0
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |word| {
                let (of, count) = Self::split(word);
                let count = if of == process { count } else { 0 };
                Some(u64::from(process) << 32 | u64::from(change(count)))
            });
    }

    fn enter(&'static self) -> Count {
        let process = process::id();
        self.change(process, |count| count + 1);
        Count(self, process)
    }
}

impl Drop for Count {
    fn drop(&mut self) {
        self.0.change(self.1, |count| count.saturating_sub(1));
    }
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use super::*;

    #[test]
    fn running_counts_threads_of_one_process() {
        static COUNTED: Running = Running(AtomicU64::new(0));
        let own = process::id();
        let one = COUNTED.enter();
        let other = COUNTED.enter();
        assert_eq!(COUNTED.in_process(own), 2);
        drop(one);
        assert_eq!(COUNTED.in_process(own), 1);
        // A forked child has a copy of the number.
        assert_eq!(COUNTED.in_process(own + 1), 0);
        COUNTED.change(own + 1, |count| count + 1);
        assert_eq!(COUNTED.in_process(own + 1), 1);
        drop(other);
    }
}
