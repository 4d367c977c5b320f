//! The settings of a gate, apart from its program: the VM's memory, handlers, devices and events.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use msrgate_program::Program;

use super::device::{Device, GuestMemory, MakeDevice};
use super::events::EventOptions;
use super::id::VcpuId;
use super::publisher::Publication;
use super::watch::Watcher;

/// The settings of a gate, apart from its program: the VM's memory, handlers, devices and events.
#[derive(Clone, Default)]
pub struct GateOptions {
    pub(super) memory: Option<Arc<dyn GuestMemory>>,
    pub(super) devices: BTreeMap<Box<str>, MakeDevice>,
    /// The names of the policy's handlers for which the VMM's own loop gives the reply.
    pub(super) handlers: BTreeSet<Box<str>>,
    pub(super) events: EventOptions,
    pub(super) clock: Clock,
    pub(super) watcher: Option<Arc<dyn Watcher>>,
    pub(super) publish_by: Option<PublishBy>,
}

/// The function that hands a [`Publication`], which is a filter to be set, to a thread of the VMM's.
pub(super) type PublishBy = Arc<dyn Fn(Publication) + Send + Sync>;

/// The clock by which a gate measures for how long an access has waited for its filter.
#[derive(Clone, Copy)]
pub(super) struct Clock(pub(super) fn() -> Instant);

impl Default for Clock {
    fn default() -> Self {
        Self(Instant::now)
    }
}

impl fmt::Debug for GateOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GateOptions")
            .field("memory", &self.memory.is_some())
            .field("devices", &self.devices.keys())
            .field("handlers", &self.handlers)
            .field("events", &self.events)
            .field("watcher", &self.watcher.is_some())
            .finish_non_exhaustive()
    }
}

impl GateOptions {
    /// Makes options without memory, handlers and devices. Events hold neither values nor RIP.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the VM's memory, which a policy with `[device.microcode]` and `update = "accept"` needs.
    #[must_use]
    pub fn memory(mut self, memory: Arc<dyn GuestMemory>) -> Self {
        self.memory = Some(memory);
        self
    }

    /// Adds a device, which answers for the `handler` of this name in place of the VMM's loop. `make`
    /// is called for each vCPU.
    #[must_use]
    pub fn device(
        mut self,
        handler: &str,
        make: impl Fn(VcpuId) -> Box<dyn Device> + Send + Sync + 'static,
    ) -> Self {
        self.devices.insert(handler.into(), Arc::new(make));
        self
    }

    /// Adds names of handlers that the VMM's loop answers for, by
    /// [`VcpuGate::finish`](super::VcpuGate::finish). If a program has a `handler` that is not named here
    /// and has no [device](Self::device), making the gate and [`Gate::replace`](super::Gate::replace)
    /// return an error.
    #[must_use]
    pub fn handlers<'n>(mut self, names: impl IntoIterator<Item = &'n str>) -> Self {
        self.handlers.extend(names.into_iter().map(Box::from));
        self
    }

    /// Returns the first of the program's handlers that the VMM does not have.
    pub(super) fn missing_handler(&self, program: &Program) -> Option<Box<str>> {
        let has = |name: &str| self.handlers.contains(name) || self.devices.contains_key(name);
        let missing = program.handlers().into_iter().find(|name| !has(name));
        missing.map(Box::from)
    }

    /// Sets a watcher, to which the gate passes each of its answers before it gives the answer. With a
    /// watcher, each access that the policy denies comes to the gate, even if the policy logs no access.
    #[must_use]
    pub fn watcher(mut self, watcher: Arc<dyn Watcher>) -> Self {
        self.watcher = Some(watcher);
        self
    }

    /// Has a thread of the VMM's set the filters that first accesses ask for, in place of a thread of the gate's
    /// own. The gate calls `hand_over` on the thread of a vCPU, while the gate holds locks of its own: the
    /// function must not set the filter itself, but hand the publication to another thread, which calls
    /// [`Publication::set`] soon. Until the filter is set, the vCPU executes its access again and again. A
    /// VMM with many VMs needs only one such thread for all VMs.
    #[must_use]
    pub fn publish_by(mut self, hand_over: impl Fn(Publication) + Send + Sync + 'static) -> Self {
        self.publish_by = Some(Arc::new(hand_over));
        self
    }

    /// Replaces the real clock by another one, for tests that would otherwise wait for seconds.
    #[cfg(test)]
    pub(super) const fn clock(mut self, now: fn() -> Instant) -> Self {
        self.clock = Clock(now);
        self
    }

    /// Sets which data an event holds, how long a vCPU's event queue is, and how many events of one kind the
    /// queue takes in a second.
    #[must_use]
    pub const fn events(mut self, events: EventOptions) -> Self {
        self.events = events;
        self
    }
}
