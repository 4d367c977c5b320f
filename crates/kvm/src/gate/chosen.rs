//! By which processor a program's variant was chosen, and which vCPUs have a part of the gate.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};

use msrgate_program::Cpu;

use super::cpuid::GuestCpuid;
use super::error::GateError;
use super::id::VcpuId;

/// The token that a `VcpuGate` holds: as long as it exists, the vCPU has a `VcpuGate`.
#[derive(Default)]
pub(super) struct Alive;

/// The processor, and the vCPUs that were added.
pub(super) struct Chosen {
    cpu: Cpu,
    /// Whether a vCPU's guest may run guests.
    nests: bool,
    vcpus: BTreeMap<VcpuId, Added>,
}

/// A vCPU that was added, and may be gone.
struct Added {
    /// Of its CPUID, which must not change.
    fingerprint: u64,
    alive: Weak<Alive>,
}

impl Chosen {
    /// The first vCPU has this CPUID.
    pub(super) fn by(id: VcpuId, cpuid: &GuestCpuid, alive: &Arc<Alive>) -> Self {
        let first = Added::new(cpuid, alive);
        Self {
            cpu: cpuid.cpu().clone(),
            nests: cpuid.has_virtualization(),
            vcpus: BTreeMap::from([(id, first)]),
        }
    }

    /// The processor.
    pub(super) const fn cpu(&self) -> &Cpu {
        &self.cpu
    }

    /// Tells if a guest on any of the vCPUs may run guests, as far as CPUID goes.
    pub(super) const fn nests(&self) -> bool {
        self.nests
    }

    /// Adds a vCPU, perhaps one that was there before.
    ///
    /// # Errors
    /// It is of another processor, still has a part of the gate, or had another CPUID.
    pub(super) fn add(
        &mut self,
        id: VcpuId,
        cpuid: &GuestCpuid,
        alive: &Arc<Alive>,
    ) -> Result<(), GateError> {
        if self.cpu != *cpuid.cpu() {
            return Err(GateError::OtherCpu {
                vcpu: id,
                chosen: self.cpu.clone(),
                seen: cpuid.cpu().clone(),
            });
        }
        if let Some(before) = self.vcpus.get(&id) {
            if before.alive.strong_count() > 0 {
                return Err(GateError::VcpuTwice { vcpu: id });
            }
            if before.fingerprint != cpuid.fingerprint() {
                return Err(GateError::CpuidChanged { vcpu: id });
            }
        }
        self.vcpus.insert(id, Added::new(cpuid, alive));
        self.nests |= cpuid.has_virtualization();
        Ok(())
    }
}

impl Added {
    fn new(cpuid: &GuestCpuid, alive: &Arc<Alive>) -> Self {
        Self {
            fingerprint: cpuid.fingerprint(),
            alive: Arc::downgrade(alive),
        }
    }
}
