//! What a gate looks at of the CPUID that a VMM gives its vCPUs.

use std::hash::{DefaultHasher, Hash, Hasher};

use kvm_bindings::{CpuId, kvm_cpuid_entry2};
use msrgate_program::{Cpu, CpuidBit, CpuidRegister};

use super::error::GateError;

/// The leaves that `KVM_SET_CPUID2` gets, in whichever type a VMM has them.
pub trait CpuidLeaves {
    /// The leaves.
    fn leaves(&self) -> &[kvm_cpuid_entry2];
}

impl CpuidLeaves for [kvm_cpuid_entry2] {
    fn leaves(&self) -> &[kvm_cpuid_entry2] {
        self
    }
}

impl CpuidLeaves for Vec<kvm_cpuid_entry2> {
    fn leaves(&self) -> &[kvm_cpuid_entry2] {
        self
    }
}

impl CpuidLeaves for CpuId {
    fn leaves(&self) -> &[kvm_cpuid_entry2] {
        self.as_slice()
    }
}

/// The CPUID of a vCPU.
pub(super) struct GuestCpuid {
    leaves: Vec<kvm_cpuid_entry2>,
    cpu: Cpu,
    signature: u32,
}

impl GuestCpuid {
    /// The CPUID of these leaves.
    ///
    /// # Errors
    /// Leaf 0 or 1 is missing, by which a processor is known.
    pub(super) fn new(leaves: &[kvm_cpuid_entry2]) -> Result<Self, GateError> {
        let leaf = |number| leaves.iter().find(|leaf| leaf.function == number);
        let (Some(name), Some(features)) = (leaf(0), leaf(1)) else {
            return Err(GateError::NoCpuid);
        };
        Ok(Self {
            cpu: Cpu::from_cpuid([name.ebx, name.edx, name.ecx], features.eax),
            signature: features.eax,
            leaves: leaves.to_vec(),
        })
    }

    /// The processor.
    pub(super) const fn cpu(&self) -> &Cpu {
        &self.cpu
    }

    /// EAX of leaf 1.
    pub(super) const fn signature(&self) -> u32 {
        self.signature
    }

    /// Whether it has a feature.
    pub(super) fn has(&self, bit: &CpuidBit) -> bool {
        let of = |leaf: &&kvm_cpuid_entry2| (leaf.function, leaf.index) == (bit.leaf, bit.subleaf);
        self.leaves.iter().find(of).is_some_and(|leaf| {
            let register = match bit.register {
                CpuidRegister::Eax => leaf.eax,
                CpuidRegister::Ebx => leaf.ebx,
                CpuidRegister::Ecx => leaf.ecx,
                CpuidRegister::Edx => leaf.edx,
            };
            register >> bit.bit & 1 == 1
        })
    }

    /// Whether the guest may run guests: VMX (leaf 1, ECX 5) or SVM (leaf 0x80000001, ECX 2).
    pub(super) fn has_virtualization(&self) -> bool {
        let ecx = |number: u32| {
            let of = |leaf: &&kvm_cpuid_entry2| leaf.function == number;
            self.leaves.iter().find(of).map_or(0, |leaf| leaf.ecx)
        };
        ecx(1) >> 5 & 1 == 1 || ecx(0x8000_0001) >> 2 & 1 == 1
    }

    /// A number that is another one if anything has changed, in all likelihood.
    pub(super) fn fingerprint(&self) -> u64 {
        let mut leaves: Vec<_> = self
            .leaves
            .iter()
            .map(|leaf| {
                let registers = [leaf.eax, leaf.ebx, leaf.ecx, leaf.edx];
                (leaf.function, leaf.index, registers)
            })
            .collect();
        leaves.sort_unstable();
        let mut hasher = DefaultHasher::new();
        leaves.hash(&mut hasher);
        hasher.finish()
    }
}
