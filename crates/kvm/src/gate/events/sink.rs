//! The trait of sinks, which take events, and the sinks that pass them to a log of the VMM.

use super::event::Event;
use super::reader::VcpuDrops;

/// A receiver of events. Its methods run on the thread of [`Events::spawn`](super::Events::spawn),
/// never on a vCPU's thread.
pub trait Sink: Send {
    /// Takes one event.
    fn event(&mut self, event: &Event);

    /// Takes the number of events of a vCPU that were dropped or held back so far. The thread calls this
    /// when that number has changed, at most once a second, and at the end.
    fn dropped(&mut self, drops: VcpuDrops);

    /// Flushes the sink's output. The thread calls this after it has passed on events, when the queues hold
    /// no further events.
    fn flush(&mut self) {}

    /// Returns the number of times that the sink has failed to pass on an event.
    /// [`EventThread::failed`](super::EventThread::failed) is the sum over a thread's sinks.
    fn failed(&self) -> u64 {
        0
    }
}

/// The sink that emits each event as a `tracing` event with the target `msrgate`: a refusal with the level
/// warn, all others with the level info.
#[cfg(feature = "tracing")]
#[derive(Clone, Copy, Debug, Default)]
pub struct TracingSink;

#[cfg(feature = "tracing")]
impl Sink for TracingSink {
    fn event(&mut self, event: &Event) {
        let Event {
            vcpu,
            index,
            access,
            reason,
            disposition,
            held_back,
            ..
        } = event;
        let vcpu = vcpu.get();
        let (value, rip) = (event.value, event.rip);
        if disposition.is_refusal() {
            tracing::warn!(target: "msrgate", vcpu, msr = %index, %access, %reason, action = %disposition, value, rip, held_back, "refused");
        } else {
            tracing::info!(target: "msrgate", vcpu, msr = %index, %access, %reason, action = %disposition, value, rip, held_back, "seen");
        }
    }

    fn dropped(&mut self, drops: VcpuDrops) {
        let VcpuDrops {
            vcpu,
            dropped,
            held_back,
        } = drops;
        tracing::warn!(target: "msrgate", vcpu = vcpu.get(), dropped, held_back, "events lost");
    }
}

/// The sink that emits each event as a record of the `log` crate with the target `msrgate`: a refusal with
/// the level warn, all others with the level info. The text of a record is the `Display` of [`Event`].
#[cfg(feature = "log")]
#[derive(Clone, Copy, Debug, Default)]
pub struct LogSink;

#[cfg(feature = "log")]
impl Sink for LogSink {
    fn event(&mut self, event: &Event) {
        let level = if event.disposition.is_refusal() {
            log::Level::Warn
        } else {
            log::Level::Info
        };
        log::log!(target: "msrgate", level, "{event}");
    }

    fn dropped(&mut self, drops: VcpuDrops) {
        log::warn!(target: "msrgate", "{drops}");
    }
}

#[cfg(test)]
mod tests;
