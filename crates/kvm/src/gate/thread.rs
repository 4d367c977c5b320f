//! The gate's own threads, and fork(2): a child of the process has none of them.

use std::io;
use std::mem;
use std::process;
use std::thread::{Builder, JoinHandle};

use crate::sys::signals;

/// A thread, and the process that it is of.
#[derive(Debug)]
pub(super) struct OwnThread<T> {
    handle: JoinHandle<T>,
    process: u32,
}

impl<T: Send + 'static> OwnThread<T> {
    /// Starts a thread of this name, in which all signals are blocked.
    pub(super) fn spawn(name: &str, body: impl FnOnce() -> T + Send + 'static) -> io::Result<Self> {
        let builder = Builder::new().name(name.into());
        let handle = signals::while_blocked(|| builder.spawn(body))?;
        Ok(Self {
            handle,
            process: process::id(),
        })
    }

    /// Whether the thread is one of this process. In a forked child it is not, and a lock that it held
    /// is held for ever.
    pub(super) fn is_here(&self) -> bool {
        self.process == process::id()
    }

    /// Whether the thread has ended.
    pub(super) fn is_finished(&self) -> bool {
        self.handle.is_finished()
    }

    /// Waits for the thread's end; `None` if it panicked, or is of another process.
    pub(super) fn join(self) -> Option<T> {
        if self.is_here() {
            self.handle.join().ok()
        } else {
            // To detach from a thread that is not there is an error, to wait for it takes for ever.
            mem::forget(self.handle);
            None
        }
    }
}
