//! The gate's own threads, which do not exist in a child of fork(2).

use std::io;
use std::mem;
use std::process;
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
        let handle = signals::while_blocked(|| builder.spawn(body))?;
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
