//! What a gate tells about accesses: events, in a bounded queue a vCPU, and counters.
//!
//! A vCPU puts its events into a queue of its own and goes on; what does not fit is counted. A
//! reader takes them out when it likes and hands them to [sinks](Sink).

mod counters;
mod event;
mod limit;
mod reader;
mod ring;
mod sink;

pub use counters::Count;
pub use event::{Event, Rip, Values};
pub use reader::{Counted, Events, VcpuDrops};
#[cfg(feature = "tracing")]
pub use sink::TracingSink;
pub use sink::{EventThread, JsonLines, Sink};

pub(super) use event::Happened;
pub(super) use limit::{Limit, Passage};
pub(super) use reader::{Track, Tracks};

/// What events hold, and how many there may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EventOptions {
    /// Events that a vCPU's queue holds; a queue takes 80 bytes for each. 256 unless set.
    pub queue: usize,
    /// Events of one (MSR, access, deed) that a vCPU makes a second, the rest is counted. 100
    /// unless set.
    pub per_second: u32,
    /// Whether events hold the values that guests write. Not unless asked for: `IA32_LSTAR` gives
    /// away where a kernel is.
    pub values: Values,
    /// Whether events hold RIP. Not unless asked for: each exit then copies the vCPU's registers.
    pub rip: Rip,
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
