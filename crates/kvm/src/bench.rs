//! Internals that this crate's benches and tests need. This module is not part of the public interface.

use std::fmt;
use std::sync::Arc;

use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES};
use kvm_ioctls::{VcpuFd, VmFd};
use msrgate_filter::{Access, MsrIndex};

use crate::measure::guest::{Apic, Guest, GuestError, Op, Report, called};
use crate::probe::HostCaps;

pub use crate::gate::paper::{PaperVcpu, gate};

/// The built-in guest in a VM whose vCPU the caller runs.
pub struct GuestVm {
    guest: Guest,
    cpuid: CpuId,
    script: Vec<Op>,
}

impl fmt::Debug for GuestVm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GuestVm").finish_non_exhaustive()
    }
}

impl GuestVm {
    /// Creates a VM with one vCPU.
    ///
    /// # Errors
    /// Returns an error if the device cannot be opened any more, or if a system call fails.
    pub fn new(host: &HostCaps) -> Result<Self, GuestError> {
        let cpuid = host
            .open()?
            .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
            .map_err(called("KVM_GET_SUPPORTED_CPUID"))?;
        Ok(Self {
            guest: Guest::new(host, Apic::Absent)?,
            cpuid,
            script: Vec::new(),
        })
    }

    /// The VM in which the guest runs.
    #[must_use]
    pub const fn vm(&self) -> &Arc<VmFd> {
        self.guest.vm()
    }

    /// The VM's vCPU.
    pub const fn vcpu(&mut self) -> &mut VcpuFd {
        self.guest.vcpu_mut()
    }

    /// The CPUID that the vCPU has.
    #[must_use]
    pub const fn cpuid(&self) -> &CpuId {
        &self.cpuid
    }

    /// Loads the guest with a script of accesses, in which each write writes the value 1. After the last
    /// access the guest exits by OUT.
    ///
    /// # Errors
    /// Returns an error if a system call fails.
    pub fn load(&mut self, accesses: &[(MsrIndex, Access)]) -> Result<(), GuestError> {
        let op = |&(index, access)| match access {
            Access::Read => Op::Read(index),
            Access::Write => Op::Write(index, 1),
        };
        self.script.clear();
        self.script.extend(accesses.iter().map(op));
        self.guest.load(&self.script)
    }

    /// Returns the number of the script's accesses that completed without a #GP; a read counts only if it
    /// returned `value`.
    #[must_use]
    pub fn went_through(&self, value: u64) -> usize {
        let is_done = |(number, op): (usize, &Op)| match (self.guest.report(number), op) {
            (Report::Done(after), Op::Read(_)) => after.value() == value,
            (Report::Done(_), _) => true,
            _ => false,
        };
        let script = self.script.iter().enumerate();
        script.filter(|&step| is_done(step)).count()
    }
}
