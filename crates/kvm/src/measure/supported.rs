//! The CPUID and the MSRs that this host's KVM supports for guests.

use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES, Msrs, kvm_msr_entry};
use kvm_ioctls::{Kvm, VcpuFd, VmFd};
use msrgate_filter::MsrIndex;

use crate::errno::CallErrno;
use crate::host::HostError;
use crate::probe::HostCaps;

/// The CPUID that KVM supports, the list of MSRs that a VMM saves, and a vCPU on which KVM is asked if it
/// has an MSR.
#[derive(Debug)]
pub struct Supported {
    cpuid: CpuId,
    saved: Vec<MsrIndex>,
    vcpu: VcpuFd,
    /// The VM of `vcpu`. The VM must live as long as the vCPU.
    _vm: VmFd,
}

/// The values that the CPUID instruction returns for one leaf.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "the names say it")]
pub struct CpuidLeaf {
    pub eax: u32,
    pub ebx: u32,
    pub ecx: u32,
    pub edx: u32,
}

impl Supported {
    /// Asks the KVM of `host` for its supported CPUID and MSRs. Creates a VM for this, which lives as long
    /// as the result.
    ///
    /// # Errors
    /// Returns an error if the device has disappeared since the host was probed, or if one of the calls
    /// fails.
    pub fn of(host: &HostCaps) -> Result<Self, HostError> {
        let kvm = host.open()?;
        let (cpuid, saved) = lists(&kvm).map_err(|errno| HostError::Lists { errno })?;
        let vm = host.create_vm()?;
        let vcpu = vm.create_vcpu(0).map_err(|error| HostError::Lists {
            errno: error.into(),
        })?;
        vcpu.set_cpuid2(&cpuid).map_err(|error| HostError::Lists {
            errno: error.into(),
        })?;
        Ok(Self {
            cpuid,
            saved,
            vcpu,
            _vm: vm,
        })
    }

    /// Returns the registers that CPUID returns for this leaf to a guest that gets every leaf that KVM
    /// supports; `None` for a leaf that KVM does not support. Pass subleaf 0 for leaves that ignore ECX.
    #[must_use]
    pub fn cpuid(&self, leaf: u32, subleaf: u32) -> Option<CpuidLeaf> {
        let entries = self.cpuid.as_slice().iter();
        let mut entries = entries.filter(|one| (one.function, one.index) == (leaf, subleaf));
        entries.next().map(|one| CpuidLeaf {
            eax: one.eax,
            ebx: one.ebx,
            ecx: one.ecx,
            edx: one.edx,
        })
    }

    /// The MSRs of `KVM_GET_MSR_INDEX_LIST`, sorted by index: those that a VMM saves.
    #[must_use]
    pub fn saved(&self) -> &[MsrIndex] {
        &self.saved
    }

    /// Returns true if KVM has this MSR: if `KVM_GET_MSRS` returns a value for it. With
    /// `kvm.ignore_msrs=1` this is true of every MSR.
    #[must_use]
    pub fn has(&self, index: MsrIndex) -> bool {
        let entry = kvm_msr_entry {
            index: index.get(),
            ..kvm_msr_entry::default()
        };
        let Ok(mut msrs) = Msrs::from_entries(&[entry]) else {
            return false;
        };
        self.vcpu.get_msrs(&mut msrs) == Ok(1)
    }
}

fn lists(kvm: &Kvm) -> Result<(CpuId, Vec<MsrIndex>), CallErrno> {
    let cpuid = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)?;
    let list = kvm.get_msr_index_list()?;
    let mut saved: Vec<_> = list.as_slice().iter().copied().map(MsrIndex::new).collect();
    saved.sort_unstable();
    Ok((cpuid, saved))
}
