//! Unsafe: looks at a thread that the kernel may have killed.
//!
//! The helper thread, which makes the system calls that a VMM's own threads may not make.
//!
//! VMMs put their threads under seccomp filters. The helper thread is started earlier, at the process's
//! first KVM request, and blocks all signals. A vCPU's thread hands a job to the helper thread and waits for
//! it, which takes only futex calls.
#![expect(unsafe_code, reason = "pthread_tryjoin_np has no safe form")]

use std::collections::VecDeque;
use std::mem;
use std::os::unix::thread::JoinHandleExt as _;
use std::ptr;
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::thread::{self, Builder, JoinHandle, Thread};
use std::time::Duration;

use msrgate_kvm::sys::while_blocked;

type Job = Box<dyn FnOnce() + Send>;

/// The helper thread of a process.
pub(crate) struct Helper {
    jobs: Mutex<VecDeque<Job>>,
    thread: OnceLock<Result<Thread, String>>,
    /// The handle to join the helper thread with; `None` before the thread was started, and once it has
    /// ended.
    handle: Mutex<Option<JoinHandle<()>>>,
}

/// The message that is printed if the helper thread does not finish a job.
pub(crate) const NO_HELPER: &str = "msrgate's helper thread has ended: a seccomp filter that the VMM has set for all its threads may forbid its system calls";

/// The time after which a thread that waits for the helper thread checks that the helper thread still
/// exists.
const LOOK: Duration = Duration::from_secs(1);

impl Helper {
    pub(crate) const fn new() -> Self {
        Self {
            jobs: Mutex::new(VecDeque::new()),
            thread: OnceLock::new(),
            handle: Mutex::new(None),
        }
    }

    /// Starts the helper thread, if it was not started before. Between jobs the thread calls the function
    /// that `prepare` returns. The function that `prepare` returns gives the time after which it is to be
    /// called again even without a job. If the helper thread was started before, `prepare` is not called: it
    /// may make system calls that seccomp forbids by now.
    ///
    /// # Errors
    /// The kernel does not make the thread.
    pub(crate) fn start<C: FnMut() -> Option<Duration> + Send + 'static>(
        &'static self,
        prepare: impl FnOnce() -> C,
    ) -> Result<(), String> {
        let start = || {
            let chores = prepare();
            let builder = Builder::new().name("msrgate".to_owned());
            let mut held = self.handle.lock().unwrap_or_else(PoisonError::into_inner);
            let spawned = while_blocked(|| builder.spawn(move || self.serve(chores)));
            let handle = spawned.map_err(|error| {
                format!("the library cannot start its thread, and there is no VM: {error}; the limit of processes (ulimit -u) may be too low")
            })?;
            let thread = handle.thread().clone();
            *held = Some(handle);
            Ok(thread)
        };
        match self.thread.get_or_init(start) {
            Ok(_) => Ok(()),
            Err(why) => Err(why.clone()),
        }
    }

    /// Wakes the helper thread, so that it looks for jobs. The function takes no lock and allocates nothing.
    pub(crate) fn wake(&self) {
        if let Some(Ok(thread)) = self.thread.get() {
            thread.unpark();
        }
    }

    /// Has the helper thread run `act`, and waits for the result. Returns `None` if the helper thread ended
    /// before it finished `act`.
    pub(crate) fn ask<T: Send + 'static>(
        &self,
        act: impl FnOnce() -> T + Send + 'static,
    ) -> Option<T> {
        if let Some(Err(_)) = self.thread.get() {
            return None;
        }
        let (tell, told) = sync_channel(1);
        self.leave(move || {
            let _ = tell.send(act());
        });
        loop {
            match told.recv_timeout(LOOK) {
                Ok(result) => return Some(result),
                Err(RecvTimeoutError::Disconnected) => return None,
                Err(RecvTimeoutError::Timeout) if self.has_ended() => return None,
                Err(RecvTimeoutError::Timeout) => {}
            }
        }
    }

    /// Hands `act` to the helper thread, and does not wait until the thread has run it.
    pub(crate) fn leave(&self, act: impl FnOnce() + Send + 'static) {
        let job: Job = Box::new(act);
        let mut jobs = self.jobs.lock().unwrap_or_else(PoisonError::into_inner);
        jobs.push_back(job);
        drop(jobs);
        self.wake();
    }

    /// Returns true if the helper thread has ended. If the VMM sets a seccomp filter for all its threads,
    /// the kernel may kill the helper thread at a system call. A thread that is killed drops none of its
    /// values and sends no result.
    pub(crate) fn has_ended(&self) -> bool {
        let mut held = self.handle.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(handle) = held.take() else {
            return true;
        };
        let thread = handle.as_pthread_t() as libc::pthread_t;
        // SAFETY: `handle` has neither been joined nor detached: it was in `held`.
        let joined = unsafe { libc::pthread_tryjoin_np(thread, ptr::null_mut()) };
        if joined == 0 {
            // The drop of a handle detaches its thread, which no longer exists.
            mem::forget(handle);
            return true;
        }
        *held = Some(handle);
        false
    }

    fn next(&self) -> Option<Job> {
        let mut jobs = self.jobs.lock().unwrap_or_else(PoisonError::into_inner);
        jobs.pop_front()
    }

    fn serve(&self, mut chores: impl FnMut() -> Option<Duration>) {
        loop {
            while let Some(job) = self.next() {
                job();
            }
            match chores() {
                Some(time) => thread::park_timeout(time),
                None => thread::park(),
            }
        }
    }
}
