//! The gate's record of accesses: events in a bounded queue for each vCPU, and counters of accesses by kind.
//!
//! A vCPU puts its events into its own queue and never waits for a reader; an event that does not fit is
//! dropped and counted. A reader takes the events out and passes them to [sinks](Sink). Each queue keeps a
//! slot for the event of an access that the policy kills, so that a guest cannot hide that access by earlier
//! events.

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

/// The settings of events: their contents, and the limits on their number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EventOptions {
    /// The number of events that a vCPU's queue holds, from 1 to [`Self::LONGEST_QUEUE`]; 0 counts as
    /// one. A queue takes 80 bytes for each event, and for one more event, whose place is kept for the event
    /// of a kill. The default is 256.
    pub queue: usize,
    /// The largest number of events of one kind (MSR, access, disposition) that a vCPU puts into its queue
    /// in a second, 100 by default. All kills are one kind. Further events are only counted: see
    /// [`VcpuDrops::held_back`].
    pub per_second: u32,
    /// The choice whether events hold the values that guests write. The default is no: `IA32_LSTAR`
    /// reveals the address of a kernel.
    pub values: Values,
    /// The choice whether events hold RIP. The default is no: with RIP each exit copies the vCPU's
    /// registers.
    pub rip: Rip,
}

impl EventOptions {
    /// The largest number of events that a vCPU's queue may hold. A queue of this length takes 80 MiB.
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
