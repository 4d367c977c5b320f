//! What a gate tells about accesses: events, in a bounded queue a vCPU, and counters.
//!
//! A vCPU puts its events into a queue of its own and goes on; what does not fit is counted. A
//! reader takes them out when it likes and hands them to [sinks](Sink). In each queue a place is kept for
//! the event of a kill, so that no guest hides its end by what it did before.

mod counters;
mod event;
mod file;
mod limit;
mod lines;
mod reader;
mod ring;
mod sink;
mod thread;

pub use counters::Count;
pub use event::{Event, Rip, Values};
pub use file::{LogFile, Reopener};
#[cfg(feature = "json")]
pub use lines::JsonLines;
pub use lines::TextLines;
pub use reader::{Counted, Events, VcpuDrops};
#[cfg(feature = "log")]
pub use sink::LogSink;
pub use sink::Sink;
#[cfg(feature = "tracing")]
pub use sink::TracingSink;
pub use thread::EventThread;

pub(super) use event::EventRecord;
pub(super) use limit::{Limit, Passage};
pub(super) use reader::{VcpuLog, VcpuLogs};

use super::error::GateError;

/// What events hold, and how many there may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EventOptions {
    /// Events that a vCPU's queue holds, from 1 (which 0 is, too) to [`Self::LONGEST_QUEUE`]; a queue
    /// takes 80 bytes for each, and for the event of a kill beyond them. 256 unless set.
    pub queue: usize,
    /// Events of one (MSR, access, disposition) that a vCPU makes a second, of kills all together; the rest is
    /// counted, see [`VcpuDrops::held_back`]. 100 unless set.
    pub per_second: u32,
    /// Whether events hold the values that guests write. Not unless asked for: `IA32_LSTAR` gives
    /// away where a kernel is.
    pub values: Values,
    /// Whether events hold RIP. Not unless asked for: each exit then copies the vCPU's registers.
    pub rip: Rip,
}

impl EventOptions {
    /// The most events that a queue may be asked to hold: 80 MiB for each vCPU.
    pub const LONGEST_QUEUE: usize = 1 << 20;

    pub(super) const fn check(&self) -> Result<(), GateError> {
        if self.queue > Self::LONGEST_QUEUE {
            return Err(GateError::Queue {
                asked: self.queue,
                most: Self::LONGEST_QUEUE,
            });
        }
        Ok(())
    }
}

impl Default for EventOptions {
    fn default() -> Self {
        Self {
            queue: 256,
            per_second: 100,
            values: Values::Hidden,
            rip: Rip::Hidden,
        }
    }
}
