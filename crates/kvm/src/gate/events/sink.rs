//! The trait of sinks, which take events, and the sinks that hand them on to a log of the VMM's own.

use super::event::Event;
use super::reader::VcpuDrops;

/// Takes events. It runs on a thread of its own, never on a vCPU's.
pub trait Sink: Send {
    /// Takes one event.
    fn event(&mut self, event: &Event);

    /// Takes the number of events of a vCPU that were dropped or held back so far. It is called when that
    /// number has changed, once a second at most and at the end.
    fn dropped(&mut self, drops: VcpuDrops);

    /// Some events have been taken, and for now there are no others.
    fn flush(&mut self) {}

    /// Returns how many times the sink has failed to hand on what it was given.
    /// [`EventThread::failed`](super::EventThread::failed) is the sum over a thread's sinks.
    fn failed(&self) -> u64 {
        0
    }
}

/// Events as `tracing` events of the target `msrgate`: refusals as warnings, the rest as info.
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

/// Events as records of the `log` crate, of the target `msrgate`: refusals as warnings, the rest as info.
/// A record's text is what [`Event`] is displayed as.
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
