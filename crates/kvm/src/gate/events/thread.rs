//! The thread that passes events to sinks.

use std::io;
use std::mem;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use super::reader::{Events, VcpuDrops};
use super::sink::Sink;
use crate::gate::thread::OwnThread;

/// A thread that passes events to sinks. When this value is dropped, the thread passes on the remaining
/// events, and ends. In a forked child, which does not have the thread, dropping this value does nothing.
#[derive(Debug)]
#[must_use = "the thread ends when this is dropped"]
pub struct EventThread {
    stop: Option<Sender<()>>,
    thread: Option<OwnThread<Events>>,
    failed: Arc<AtomicU64>,
}

/// The interval at which the thread drains the queues.
const INTERVAL: Duration = Duration::from_millis(20);

/// The shortest time between two reports of lost events, so that a guest's flood does not become a
/// flood of reports.
const TELL_AGAIN: Duration = Duration::from_secs(1);

/// The numbers of lost events that the sinks were told in the last report, and the time of that report.
#[derive(Default)]
struct Told {
    drops: Vec<VcpuDrops>,
    at: Option<Instant>,
}

impl Events {
    /// Starts a thread that passes events to `sinks`. All signals are blocked in this thread.
    ///
    /// # Errors
    /// The error of starting the thread.
    pub fn spawn(self, mut sinks: Vec<Box<dyn Sink>>) -> io::Result<EventThread> {
        let (stop, stopped) = channel();
        let failed = Arc::new(AtomicU64::new(0));
        let seen = Arc::clone(&failed);
        let body = move || {
            let mut events = self;
            let mut told = Told::default();
            loop {
                let is_last = stopped.recv_timeout(INTERVAL) != Err(RecvTimeoutError::Timeout);
                hand_over(&mut events, &mut sinks);
                if is_last || told.is_due() {
                    told.tell(&events, &mut sinks);
                }
                let sum = sinks.iter().map(|sink| sink.failed()).sum();
                seen.store(sum, Ordering::Relaxed);
                if is_last {
                    return events;
                }
            }
        };
        let thread = OwnThread::spawn("msrgate-events", body)?;
        Ok(EventThread {
            stop: Some(stop),
            thread: Some(thread),
            failed,
        })
    }
}

fn hand_over(events: &mut Events, sinks: &mut [Box<dyn Sink>]) {
    let mut count = 0;
    events.drain(|event| {
        count += 1;
        for sink in &mut *sinks {
            sink.event(&event);
        }
    });
    if count > 0 {
        for sink in sinks {
            sink.flush();
        }
    }
}

impl Told {
    fn is_due(&self) -> bool {
        self.at.is_none_or(|at| at.elapsed() >= TELL_AGAIN)
    }

    /// Tells the sinks the numbers of lost events of each vCPU for which these numbers have changed.
    fn tell(&mut self, events: &Events, sinks: &mut [Box<dyn Sink>]) {
        let drops = events.drops();
        let new: Vec<_> = drops
            .iter()
            .filter(|one| !self.drops.contains(one))
            .collect();
        if new.is_empty() {
            return;
        }
        for sink in sinks {
            for one in &new {
                sink.dropped(**one);
            }
            sink.flush();
        }
        (self.drops, self.at) = (drops, Some(Instant::now()));
    }
}

impl EventThread {
    /// Returns the number of times that the sinks have failed so far: the sum of [`Sink::failed`].
    #[must_use]
    pub fn failed(&self) -> u64 {
        self.failed.load(Ordering::Relaxed)
    }

    /// Tells if the thread is running in this process. The thread has ended if a sink panicked. A forked
    /// child does not have the thread.
    #[must_use]
    pub fn is_running(&self) -> bool {
        let thread = self.thread.as_ref();
        thread.is_some_and(|thread| thread.is_here() && !thread.is_finished())
    }

    /// Passes on the remaining events, ends the thread, and returns the reader; `None` if a sink
    /// panicked, or in a forked child.
    #[must_use]
    pub fn stop(mut self) -> Option<Events> {
        self.end()
    }

    fn end(&mut self) -> Option<Events> {
        let thread = self.thread.take()?;
        let stop = self.stop.take();
        if thread.is_here() {
            drop(stop);
        } else {
            // Do not drop `stop`: that takes a lock that the thread may have held at the time of the fork.
            mem::forget(stop);
        }
        thread.join()
    }
}

impl Drop for EventThread {
    fn drop(&mut self) {
        self.end();
    }
}
