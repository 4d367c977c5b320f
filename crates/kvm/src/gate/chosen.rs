//! The processor that chose a program's variant, and the vCPUs that have been added to the gate.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};

use msrgate_program::Cpu;

use super::cpuid::GuestCpuid;
use super::error::GateError;
use super::id::VcpuId;

/// The token by which a gate sees that a `VcpuGate` still exists: the `VcpuGate` holds it until it is
/// dropped.
#[derive(Default)]
pub(super) struct Alive;

/// The processor that chose the program's variant, and the vCPUs that have been added to the gate.
pub(super) struct Chosen {
    cpu: Cpu,
    /// False if the processor is unknown. The program is then the same for all processors.
    is_known: bool,
    /// True if the CPUID of any vCPU offers virtualization, so that the guest on that vCPU may run nested
    /// guests.
    nests: bool,
    vcpus: BTreeMap<VcpuId, Added>,
}

/// A vCPU that has been added to the gate. Its `VcpuGate` may have been dropped since.
struct Added {
    /// The fingerprint of the vCPU's CPUID, which must not change.
    fingerprint: u64,
    alive: Weak<Alive>,
}

impl Chosen {
    /// Makes the record of a gate's first vCPU. The vCPU's CPUID names the processor that chooses the
    /// variant.
    pub(super) fn by(id: VcpuId, cpuid: &GuestCpuid, alive: &Arc<Alive>) -> Self {
        let first = Added::new(cpuid, alive);
        Self {
            cpu: cpuid.cpu().clone(),
            is_known: cpuid.is_known(),
            nests: cpuid.has_virtualization(),
            vcpus: BTreeMap::from([(id, first)]),
        }
    }

    /// The processor that chose the variant.
    pub(super) const fn cpu(&self) -> &Cpu {
        &self.cpu
    }

    /// Returns true if the processor is known. If the processor is unknown, the program in force must be the
    /// same for all processors.
    pub(super) const fn is_known(&self) -> bool {
        self.is_known
    }

    /// Tells if the CPUID of any vCPU lets the guest run nested guests.
    pub(super) const fn nests(&self) -> bool {
        self.nests
    }

    /// Notes that a vCPU is added to the gate. The vCPU may have been added before, as in hot-plug.
    ///
    /// # Errors
    /// [`GateError::OtherCpu`] if the vCPU has another processor than the first one,
    /// [`GateError::VcpuTwice`] if its old `VcpuGate` still exists, or [`GateError::CpuidChanged`] if it had
    /// another CPUID before.
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
