//! What a VMM gives its gate beside a program.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use super::device::{Device, GuestMemory, MakeDevice};
use super::events::EventOptions;
use super::id::VcpuId;

/// What a VMM gives its gate beside a program.
#[derive(Clone, Default)]
pub struct GateOptions {
    pub(super) memory: Option<Arc<dyn GuestMemory>>,
    pub(super) devices: BTreeMap<Box<str>, MakeDevice>,
    pub(super) events: EventOptions,
}

impl fmt::Debug for GateOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GateOptions")
            .field("memory", &self.memory.is_some())
            .field("devices", &self.devices.keys())
            .field("events", &self.events)
            .finish()
    }
}

impl GateOptions {
    /// Nothing: no memory, no devices, events without values and RIP.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The VM's memory. `[device.microcode]` with `update = "accept"` needs it.
    #[must_use]
    pub fn memory(mut self, memory: Arc<dyn GuestMemory>) -> Self {
        self.memory = Some(memory);
        self
    }

    /// A device for each vCPU that answers for the `handler` of this name, in place of the VMM's loop.
    #[must_use]
    pub fn device(
        mut self,
        handler: &str,
        make: impl Fn(VcpuId) -> Box<dyn Device> + Send + Sync + 'static,
    ) -> Self {
        self.devices.insert(handler.into(), Arc::new(make));
        self
    }

    /// What events hold, and how many there may be.
    #[must_use]
    pub const fn events(mut self, events: EventOptions) -> Self {
        self.events = events;
        self
    }
}
