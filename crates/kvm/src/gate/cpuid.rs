//! The CPUID that a VMM gives its vCPUs, as far as a gate uses it.

use std::hash::{DefaultHasher, Hash, Hasher};

use kvm_bindings::{CpuId, kvm_cpuid_entry2};
use msrgate_program::{Cpu, CpuidBit, CpuidRegister};

use super::error::GateError;

/// An entry of the CPUID that a VMM gives a vCPU, in plain values: `struct kvm_cpuid_entry2`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "the names of registers say it")]
pub struct CpuidEntry {
    /// The leaf: the value of EAX when the guest executes CPUID.
    pub function: u32,
    /// The subleaf: the value of ECX, or 0 for a leaf that has no subleaves.
    pub index: u32,
    pub eax: u32,
    pub ebx: u32,
    pub ecx: u32,
    pub edx: u32,
}

impl From<kvm_cpuid_entry2> for CpuidEntry {
    fn from(entry: kvm_cpuid_entry2) -> Self {
        Self {
            function: entry.function,
            index: entry.index,
            eax: entry.eax,
            ebx: entry.ebx,
            ecx: entry.ecx,
            edx: entry.edx,
        }
    }
}

/// The CPUID entries that `KVM_SET_CPUID2` gets, in the VMM's own type: [`CpuidEntry`], or a type of
/// `kvm-bindings`.
pub trait CpuidLeaves {
    /// Returns the CPUID entries as plain values.
    fn leaves(&self) -> Vec<CpuidEntry>;
}

impl<T: Copy + Into<CpuidEntry>> CpuidLeaves for [T] {
    fn leaves(&self) -> Vec<CpuidEntry> {
        self.iter().map(|&entry| entry.into()).collect()
    }
}

impl<T: Copy + Into<CpuidEntry>> CpuidLeaves for Vec<T> {
    fn leaves(&self) -> Vec<CpuidEntry> {
        self.as_slice().leaves()
    }
}

impl CpuidLeaves for CpuId {
    fn leaves(&self) -> Vec<CpuidEntry> {
        self.as_slice().leaves()
    }
}

/// The CPUID of a vCPU.
pub(super) struct GuestCpuid {
    leaves: Vec<CpuidEntry>,
    cpu: Cpu,
    signature: u32,
}

impl GuestCpuid {
    /// Makes the CPUID of these leaves.
    ///
    /// # Errors
    /// [`GateError::NoCpuid`] if leaf 0 or 1, which identify the processor, is missing.
    pub(super) fn new(leaves: &[CpuidEntry]) -> Result<Self, GateError> {
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

    /// Makes a value that stands for the unknown CPUID of a vCPU.
    pub(super) fn unknown() -> Self {
        Self {
            leaves: Vec::new(),
            cpu: Cpu::from_cpuid([0; 3], 0),
            signature: 0,
        }
    }

    /// Returns true if the CPUID is known.
    pub(super) const fn is_known(&self) -> bool {
        !self.leaves.is_empty()
    }

    /// The processor that the CPUID describes.
    pub(super) const fn cpu(&self) -> &Cpu {
        &self.cpu
    }

    /// EAX of CPUID leaf 1: the processor's family, model and stepping.
    pub(super) const fn signature(&self) -> u32 {
        self.signature
    }

    /// Tells if this feature bit is set in the CPUID.
    pub(super) fn has(&self, bit: &CpuidBit) -> bool {
        let of = |leaf: &&CpuidEntry| (leaf.function, leaf.index) == (bit.leaf, bit.subleaf);
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

    /// Tells if the guest may run nested guests: VMX (leaf 1, bit 5 of ECX) or SVM (leaf 0x80000001, bit 2
    /// of ECX).
    pub(super) fn has_virtualization(&self) -> bool {
        let ecx = |number: u32| {
            let of = |leaf: &&CpuidEntry| leaf.function == number;
            self.leaves.iter().find(of).map_or(0, |leaf| leaf.ecx)
        };
        ecx(1) >> 5 & 1 == 1 || ecx(0x8000_0001) >> 2 & 1 == 1
    }

    /// Returns the parts of this CPUID that the gate relies on. `asked` lists the feature bits that the gate
    /// has looked up in this CPUID.
    pub(super) fn relied_on(&self, asked: Vec<CpuidBit>) -> ReliedOn {
        let there = asked.into_iter().filter(|bit| self.has(bit));
        ReliedOn {
            is_known: self.is_known(),
            cpu: self.cpu.clone(),
            signature: self.signature,
            bits: there.collect(),
            virtualization: self.has_virtualization(),
        }
    }

    /// Returns a hash of all leaves: a changed CPUID almost certainly has another hash.
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

/// The parts of a vCPU's CPUID that a gate relies on. If the CPUID that KVM has for the vCPU differs in
/// these parts, the gate's answers would be unsafe.
pub(super) struct ReliedOn {
    /// False if the vCPU's CPUID is unknown: the gate then relies on nothing.
    is_known: bool,
    /// The processor, which chooses the variant.
    cpu: Cpu,
    signature: u32,
    /// The feature bits that are set in the CPUID. By these bits the gate knows which of KVM's registers the
    /// guest has, so that the gate may access them for the guest.
    bits: Vec<CpuidBit>,
    /// True if the guest may run nested guests. If false, the gate does not check at an exit if a nested
    /// guest runs.
    virtualization: bool,
}

impl ReliedOn {
    /// Tells if the gate's answers are safe for a vCPU to which KVM gives the CPUID `leaves`, although the
    /// gate relies on the parts in `self`. Some kernels give a vCPU more bits than the VMM asked for (seen
    /// with Linux 6.18).
    pub(super) fn is_safe_for(&self, leaves: &[CpuidEntry]) -> bool {
        // A CPUID without leaf 0 or 1 is not safe.
        !self.is_known
            || GuestCpuid::new(leaves).is_ok_and(|kvm| {
                self.cpu == *kvm.cpu()
                    && self.signature == kvm.signature()
                    && self.bits.iter().all(|bit| kvm.has(bit))
                    && (self.virtualization || !kvm.has_virtualization())
            })
    }
}

#[cfg(test)]
mod tests {
    use msrgate_filter::MsrIndex;

    use super::*;

    const SEP: u32 = 1 << 11;
    const VMX: u32 = 1 << 5;

    fn leaves(signature: u32, ecx: u32, edx: u32) -> Vec<CpuidEntry> {
        let name = CpuidEntry {
            ebx: 1,
            ..CpuidEntry::default()
        };
        let features = CpuidEntry {
            function: 1,
            eax: signature,
            ecx,
            edx,
            ..CpuidEntry::default()
        };
        vec![name, features]
    }

    #[test]
    fn cpuid_in_kvm_that_differs_in_relied_on_part_is_not_safe() {
        let sysenter = msrgate_program::forward(MsrIndex::new(0x174)).unwrap();
        let is_safe = |given: &[CpuidEntry], kvm: &[CpuidEntry]| {
            let given = GuestCpuid::new(&given.leaves()).unwrap();
            given
                .relied_on(sysenter.needs_cpuid.to_vec())
                .is_safe_for(kvm)
        };
        let given = leaves(0x606a6, 0, SEP);
        assert!(is_safe(&given, &given));
        assert!(!is_safe(&given, &[]));
        assert!(!is_safe(&given, &leaves(0x606a7, 0, SEP)));
        let mut other = given.clone();
        other[0].ebx = 2;
        assert!(!is_safe(&given, &other));
        // Not safe: the gate would forward accesses to registers that the guest does not have.
        assert!(!is_safe(&given, &leaves(0x606a6, 0, 0)));
        assert!(is_safe(&leaves(0x606a6, 0, 0), &given));
        // Not safe if KVM adds virtualization: the gate would take the registers of a nested guest for the
        // guest's.
        let nests = leaves(0x606a6, VMX, SEP);
        assert!(!is_safe(&given, &nests));
        assert!(is_safe(&nests, &given));
    }
}
