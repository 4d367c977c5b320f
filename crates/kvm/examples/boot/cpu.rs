//! A vCPU: made, reset, started and run.

use std::sync::atomic::Ordering;

use anyhow::{Context, Result, ensure};
use kvm_bindings::{
    CpuId, KVM_MAX_CPUID_ENTRIES, Msrs, kvm_lapic_state, kvm_mp_state, kvm_msr_entry, kvm_regs,
    kvm_segment, kvm_sregs, kvm_vcpu_events,
};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};
use msrgate_filter::Reply;
use msrgate_kvm::gate::{Gate, Outcome, VcpuGate};
use vm_memory::GuestAddress;

use crate::{End, Machine, ZERO_PAGE};

/// A vCPU, and what it was when it was made.
pub(crate) struct Cpu {
    fd: VcpuFd,
    sregs: kvm_sregs,
    lapic: kvm_lapic_state,
    state: kvm_mp_state,
    events: kvm_vcpu_events,
    msrs: Vec<Msrs>,
    gate: Option<VcpuGate>,
}

impl Cpu {
    pub(crate) fn new(kvm: &Kvm, vm: &VmFd, gate: Option<&Gate>, number: u8) -> Result<Self> {
        let fd = vm.create_vcpu(number.into())?;
        let cpuid = cpuid(kvm, number)?;
        fd.set_cpuid2(&cpuid)?;
        // The gate: of this vCPU, from its CPUID.
        let gate = gate
            .map(|gate| gate.vcpu(u32::from(number), &cpuid))
            .transpose()?;
        let list = kvm.get_msr_index_list()?;
        // One at a time: a list ends at the first that this vCPU lacks, or may not be given.
        let value = |&index: &u32| {
            let entry = kvm_msr_entry {
                index,
                ..kvm_msr_entry::default()
            };
            let mut one = Msrs::from_entries(&[entry]).ok()?;
            let there = fd.get_msrs(&mut one) == Ok(1) && fd.set_msrs(&one) == Ok(1);
            there.then_some(one)
        };
        Ok(Self {
            sregs: fd.get_sregs()?,
            lapic: fd.get_lapic()?,
            state: fd.get_mp_state()?,
            events: fd.get_vcpu_events()?,
            msrs: list.as_slice().iter().filter_map(value).collect(),
            fd,
            gate,
        })
    }

    /// As it was made. The APIC comes before its timer's deadline, which is an MSR.
    pub(crate) fn reset(&mut self) -> Result<()> {
        self.fd.set_sregs(&self.sregs).context("KVM_SET_SREGS")?;
        self.fd.set_lapic(&self.lapic).context("KVM_SET_LAPIC")?;
        for msr in &self.msrs {
            let done = self.fd.set_msrs(msr).context("KVM_SET_MSRS")?;
            ensure!(done == 1, "cannot reset MSR {:#x}", msr.as_slice()[0].index);
        }
        // The gate: pins and emulated registers go back.
        if let Some(gate) = &mut self.gate {
            gate.reset(&mut self.fd)?;
        }
        self.fd
            .set_mp_state(self.state)
            .context("KVM_SET_MP_STATE")?;
        self.fd
            .set_vcpu_events(&self.events)
            .context("KVM_SET_VCPU_EVENTS")
    }

    /// Linux's 32-bit entry: protected mode, flat segments, no paging.
    pub(crate) fn start_at(&self, entry: GuestAddress) -> Result<()> {
        let flat = |selector, type_| {
            let (limit, present, db, s, g) = (0xffff_ffff, 1, 1, 1, 1);
            kvm_segment {
                limit,
                selector,
                type_,
                present,
                db,
                s,
                g,
                ..kvm_segment::default()
            }
        };
        let (cs, data) = (flat(0x10, 0xb), flat(0x18, 3));
        let (ds, es, ss, cr0) = (data, data, data, 0x11);
        self.fd.set_sregs(&kvm_sregs {
            cs,
            ds,
            es,
            ss,
            cr0,
            ..self.sregs
        })?;
        let (rip, rsi, rflags) = (entry.0, ZERO_PAGE.0, 2);
        Ok(self.fd.set_regs(&kvm_regs {
            rip,
            rsi,
            rflags,
            ..kvm_regs::default()
        })?)
    }

    /// Runs until the guest ends here, or on another vCPU: `None`.
    pub(crate) fn run(&mut self, machine: &Machine) -> Result<Option<End>> {
        while !machine.stop.load(Ordering::SeqCst) {
            match self.fd.run() {
                Ok(VcpuExit::IoOut(port, data)) => {
                    if let Some(end) = machine.port_out(port, data)? {
                        return Ok(Some(end));
                    }
                }
                Ok(VcpuExit::IoIn(port, data)) => machine.port_in(port, data),
                Ok(VcpuExit::MmioRead(_, data)) => data.fill(0xff),
                Ok(VcpuExit::MmioWrite(..)) => {}
                Ok(VcpuExit::X86Rdmsr(_) | VcpuExit::X86Wrmsr(_)) => {
                    if let Some(end) = self.answer()? {
                        return Ok(Some(end));
                    }
                }
                Ok(VcpuExit::Shutdown) => return Ok(Some(End::TripleFault)),
                Ok(exit) => return Ok(Some(End::Unknown(format!("{exit:?}")))),
                // EAGAIN: a processor that waits to be started was woken.
                Err(error) if [libc::EINTR, libc::EAGAIN].contains(&error.errno()) => {}
                Err(error) => return Err(error).context("KVM_RUN"),
            }
        }
        Ok(None)
    }

    /// The gate: answers an exit for an MSR.
    fn answer(&mut self) -> Result<Option<End>> {
        let gate = self.gate.as_mut().context("an MSR exit without a gate")?;
        match gate.answer(&mut self.fd)? {
            Outcome::Resume => {}
            // This VMM has no code of its own for any MSR.
            Outcome::Handler(asked) => gate.finish(&mut self.fd, asked, Reply::FAULT)?,
            Outcome::Kill(violation) => return Ok(Some(End::Killed(violation))),
        }
        Ok(None)
    }
}

/// What the host has, with this vCPU's APIC number; no PMU and no nested virtualization, which the
/// shipped policies refuse.
fn cpuid(kvm: &Kvm, number: u8) -> Result<CpuId> {
    let mut cpuid = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)?;
    let number = u32::from(number);
    for leaf in cpuid.as_mut_slice() {
        match leaf.function {
            1 => {
                leaf.ebx = leaf.ebx & 0x00ff_ffff | number << 24;
                // VMX out, a hypervisor in.
                leaf.ecx = leaf.ecx & !(1 << 5) | 1 << 31;
            }
            0xa => (leaf.eax, leaf.ebx, leaf.ecx, leaf.edx) = (0, 0, 0, 0),
            0xb | 0x1f => leaf.edx = number,
            // SVM, and the two extensions of AMD's counters.
            0x8000_0001 => leaf.ecx &= !(1 << 2 | 1 << 23 | 1 << 24),
            0x8000_001e => leaf.eax = number,
            _ => {}
        }
    }
    Ok(cpuid)
}
