//! The helper thread, which makes the system calls that a VMM's own threads may not make.
//!
//! VMMs put their threads under seccomp. The helper thread is started before that, at the process's first
//! KVM request, and blocks all signals. A vCPU's thread hands a job to the helper thread and waits for it,
//! which takes only futex calls.

use std::collections::VecDeque;
use std::sync::mpsc::sync_channel;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::thread::{self, Builder, Thread};
use std::time::Duration;

use msrgate_kvm::sys::while_blocked;

type Job = Box<dyn FnOnce() + Send>;

/// The helper thread of a process.
pub(crate) struct Helper {
    jobs: Mutex<VecDeque<Job>>,
    thread: OnceLock<Result<Thread, String>>,
}

/// The time until the thread looks again at a thing that is still in use.
const AGAIN: Duration = Duration::from_millis(20);

impl Helper {
    pub(crate) const fn new() -> Self {
        Self {
            jobs: Mutex::new(VecDeque::new()),
            thread: OnceLock::new(),
        }
    }

    /// Starts the thread, if it has not been. Between jobs it calls `sweep`, and calls it again after a while where that
    /// says that something is left.
    ///
    /// # Errors
    /// There is no thread to be had.
    pub(crate) fn start(
        &'static self,
        sweep: impl Fn() -> bool + Send + 'static,
    ) -> Result<(), String> {
        let start = || {
            let builder = Builder::new().name("msrgate".to_owned());
            let spawned = while_blocked(|| builder.spawn(move || self.serve(sweep)));
            let handle = spawned.map_err(|error| format!("no helper thread: {error}"))?;
            Ok(handle.thread().clone())
        };
        match self.thread.get_or_init(start) {
            Ok(_) => Ok(()),
            Err(why) => Err(why.clone()),
        }
    }

    /// Wakes the thread, so that it looks for jobs. The function takes no lock and allocates nothing.
    pub(crate) fn wake(&self) {
        if let Some(Ok(thread)) = self.thread.get() {
            thread.unpark();
        }
    }

    /// Has the thread run `act`, and waits for the result. Returns `None` if the thread did not finish it.
    pub(crate) fn ask<T: Send + 'static>(
        &self,
        act: impl FnOnce() -> T + Send + 'static,
    ) -> Option<T> {
        if let Some(Err(_)) = self.thread.get() {
            return None;
        }
        let (tell, told) = sync_channel(1);
        let job: Job = Box::new(move || {
            let _ = tell.send(act());
        });
        let mut jobs = self.jobs.lock().unwrap_or_else(PoisonError::into_inner);
        jobs.push_back(job);
        drop(jobs);
        self.wake();
        told.recv().ok()
    }

    fn next(&self) -> Option<Job> {
        let mut jobs = self.jobs.lock().unwrap_or_else(PoisonError::into_inner);
        jobs.pop_front()
    }

    fn serve(&self, sweep: impl Fn() -> bool) {
        loop {
            while let Some(job) = self.next() {
                job();
            }
            if sweep() {
                thread::park_timeout(AGAIN);
            } else {
                thread::park();
            }
        }
    }
}
