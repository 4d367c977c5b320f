//! The model behind a gate: the VM and the vCPUs of `msrgate-filter` in place of a real KVM's.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};

use kvm_bindings::kvm_cpuid_entry2;
use msrgate_filter::{
    Exit, Filter, Gprs, Instruction, MsrIndex, Origin, ReasonMask, RegisterFault, Registers, Reply,
    Revision, RunExit, Vcpu, Vm,
};

use super::machine::{Came, FMASK, KERNEL_GS_BASE, LSTAR, STAR, Saw, TestGuest};
use crate::errno::CallErrno;
use crate::exit::{RawReason, RawReasons};
use crate::gate::bound::Place;
use crate::gate::port::Port;
use crate::gate::vm::VmPort;
use crate::gate::{AnswerError, HandlerRequest, Outcome, StateError, VcpuGate};
use crate::install::{Filtered, InstallError, Mask};
use crate::measure::guest::Op;
use crate::sys::calls::{Level, Taken};

const SIGN_ID: MsrIndex = MsrIndex::new(0x8b);
const TRIGGER: MsrIndex = MsrIndex::new(0x79);
const CSTAR: MsrIndex = MsrIndex::new(0xc000_0083);

/// A VM of the model, and the mask of exit reasons that it has.
pub(super) struct ModelVm {
    pub(super) vm: Vm,
    mask: Mask,
    /// True if guests of the VM may run nested guests.
    nests: bool,
}

impl ModelVm {
    pub(super) fn new() -> Self {
        Self {
            vm: Vm::new(Revision::Mainline),
            mask: Mask::unknown(),
            nests: false,
        }
    }

    /// Makes a VM whose guests may run nested guests.
    pub(super) fn that_nests() -> Self {
        Self {
            nests: true,
            ..Self::new()
        }
    }
}

impl VmPort for ModelVm {
    fn replace(&mut self, filter: &Filter, reasons: ReasonMask) -> Result<(), InstallError> {
        self.mask.replace(&self.vm, filter, reasons)
    }

    fn has_nested_state(&self) -> bool {
        self.nests
    }

    fn has_shared_registers(&self) -> bool {
        true
    }
}

impl Filtered for Vm {
    fn set_reasons(&self, reasons: RawReasons) -> Result<(), CallErrno> {
        let mask = ReasonMask::from_bits(Revision::Mainline, reasons.get());
        self.set_reasons(mask.unwrap());
        Ok(())
    }

    fn set_filter(&self, filter: &Filter) -> Result<(), CallErrno> {
        self.set_filter(filter).unwrap();
        Ok(())
    }
}

/// The registers that a guest of the model reaches if the filter allows the access: those registers of a
/// real vCPU that the tests use.
pub(super) struct TestRegisters(BTreeMap<MsrIndex, u64>);

impl TestRegisters {
    fn new() -> Self {
        let held = [STAR, LSTAR, CSTAR, FMASK, KERNEL_GS_BASE, SIGN_ID];
        Self(held.map(|index| (index, 0)).into())
    }
}

/// Tells if an address of 48 bits is canonical.
const fn is_canonical(address: u64) -> bool {
    let address = address.cast_signed();
    address << 16 >> 16 == address
}

impl Registers for TestRegisters {
    fn read(&mut self, index: MsrIndex, _: Origin) -> Result<u64, RegisterFault> {
        self.0.get(&index).copied().ok_or(RegisterFault::Unknown)
    }

    fn write(&mut self, index: MsrIndex, value: u64, by: Origin) -> Result<(), RegisterFault> {
        let is_address = [LSTAR, CSTAR, KERNEL_GS_BASE].contains(&index);
        if is_address && !is_canonical(value) {
            return Err(RegisterFault::Invalid);
        }
        if (index, by) == (TRIGGER, Origin::Guest) {
            return Ok(());
        }
        let held = self.0.get_mut(&index).ok_or(RegisterFault::Unknown)?;
        // A guest asks for the microcode revision by a write to the revision register. KVM drops the written
        // value.
        if (index, by) != (SIGN_ID, Origin::Guest) {
            *held = value;
        }
        Ok(())
    }
}

/// A vCPU of the model, and the guest on it.
pub(super) struct ModelGuest {
    vcpu: ModelVcpu,
    script: Vec<Op>,
    saw: Vec<Saw>,
}

/// A vCPU of the model, and the state of its pending exit.
struct ModelVcpu {
    /// The number that identifies the vCPU. The address of this value cannot identify the vCPU,
    /// since the value moves.
    number: usize,
    vcpu: Vcpu<TestRegisters>,
    pending: Pending,
    is_restored: bool,
    level: Level,
    /// The number of times that the gate asked if the VM's own guest or a nested guest runs.
    asked: usize,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Pending {
    Open,
    Settled,
}

/// The number of the next vCPU.
static NEXT: AtomicUsize = AtomicUsize::new(1);

impl ModelGuest {
    pub(super) fn new(vm: &Vm) -> Self {
        Self {
            vcpu: ModelVcpu {
                number: NEXT.fetch_add(1, Ordering::Relaxed),
                vcpu: vm.create_vcpu(TestRegisters::new()),
                pending: Pending::Settled,
                is_restored: false,
                level: Level::Guest,
                asked: 0,
            },
            script: Vec::new(),
            saw: Vec::new(),
        }
    }

    /// Sets the guest that the kernel reports as running: the VM's own guest or a nested guest.
    pub(super) fn runs(&mut self, level: Level) {
        self.vcpu.level = level;
    }

    /// The number of times that the gate asked if a nested guest runs.
    pub(super) const fn asked(&self) -> usize {
        self.vcpu.asked
    }

    /// Loads the vCPU's registers with the operands of the guest's next access.
    fn begin(&mut self) {
        if let Some(op) = self.script.get(self.saw.len()) {
            let before = op.operands();
            self.vcpu.vcpu.set_gprs(Gprs {
                rax: before.rax,
                rcx: before.rcx,
                rdx: before.rdx,
                rip: SITE,
            });
        }
    }
}

/// The address of the model's only instruction.
const SITE: u64 = 0x1000;

impl TestGuest for ModelGuest {
    fn load(&mut self, script: &[Op]) {
        // This makes the model complete a pending exit. It has no other effect.
        let _ = self.vcpu.vcpu.run_immediate_exit();
        self.script = script.to_vec();
        self.saw.clear();
        self.begin();
    }

    fn resume(&mut self) -> Came {
        while let Some(&op) = self.script.get(self.saw.len()) {
            let instruction = match op {
                Op::Read(_) => Instruction::Rdmsr,
                Op::Write(..) => Instruction::Wrmsr,
                Op::Time | Op::SwapGs => panic!("the model has no {op:?}"),
            };
            self.vcpu.is_restored = false;
            let saw = match self.vcpu.vcpu.run(instruction) {
                RunExit::Msr(_) => {
                    self.vcpu.pending = Pending::Open;
                    return Came::ToAnMsr;
                }
                RunExit::Retired => {
                    let after = self.vcpu.vcpu.gprs();
                    assert_eq!(after.rip, SITE + Instruction::LENGTH);
                    match op {
                        Op::Write(..) => Saw::Written,
                        _ => Saw::Value(after.rdx << 32 | after.rax),
                    }
                }
                RunExit::GeneralProtection { rip } => {
                    assert_eq!(rip, SITE);
                    Saw::Fault
                }
                other => panic!("{other:?}"),
            };
            self.saw.push(saw);
            self.begin();
        }
        Came::ToItsEnd
    }

    fn saw(&self, number: usize, _: Op) -> Saw {
        self.saw[number]
    }

    fn reset(&mut self, msrs: &mut VcpuGate) -> Result<(), AnswerError> {
        msrs.reset_at(&mut self.vcpu)
    }

    fn msr_set_by_host(&mut self, msrs: &mut VcpuGate, index: MsrIndex) -> Result<(), AnswerError> {
        msrs.msr_set_by_host_at(&self.vcpu, index)
    }

    fn answer(&mut self, msrs: &mut VcpuGate) -> Result<Outcome, AnswerError> {
        msrs.answer_at(&mut self.vcpu)
    }

    fn finish(
        &mut self,
        msrs: &mut VcpuGate,
        asked: HandlerRequest,
        reply: Reply,
    ) -> Result<(), AnswerError> {
        msrs.finish_at(&mut self.vcpu, &asked, reply)
    }

    fn save(&mut self, msrs: &mut VcpuGate) -> Result<Vec<u8>, StateError> {
        msrs.save_at(&mut self.vcpu)
    }

    fn restore(&mut self, msrs: &mut VcpuGate, saved: &[u8]) -> Result<(), StateError> {
        msrs.restore_at(&mut self.vcpu, saved)
    }
}

impl Port for ModelVcpu {
    fn place(&self) -> Place {
        Place::new(self.number, -1)
    }

    fn cpuid(&self) -> Result<Option<Vec<kvm_cpuid_entry2>>, CallErrno> {
        Ok(None)
    }

    fn pending(&self) -> Result<Option<Exit>, RawReason> {
        let exit = self.vcpu.pending_exit();
        Ok(exit.filter(|_| self.pending == Pending::Open))
    }

    fn reply(&mut self, reply: Reply) {
        self.vcpu.reply(reply);
    }

    fn settle(&mut self) {
        self.pending = Pending::Settled;
    }

    fn note_restored(&mut self) {
        self.is_restored = true;
    }

    fn is_restored(&self) -> bool {
        self.is_restored
    }

    fn rewind(&mut self) -> Result<(), CallErrno> {
        let before = self.vcpu.gprs();
        self.vcpu.reply(Reply::FAULT);
        self.complete()?;
        self.vcpu.set_gprs(before);
        Ok(())
    }

    fn forget(&mut self) -> Result<(), CallErrno> {
        match self.vcpu.pending_exit() {
            Some(_) => self.rewind(),
            None => Ok(()),
        }
    }

    fn complete(&mut self) -> Result<(), CallErrno> {
        // A vCPU with a pending exit runs here, so it no longer counts as restored.
        self.is_restored &= self.vcpu.pending_exit().is_none();
        assert_eq!(self.vcpu.run_immediate_exit(), RunExit::Interrupted);
        Ok(())
    }

    fn register(&mut self, index: MsrIndex) -> Result<Option<u64>, CallErrno> {
        Ok(self.vcpu.host_read(index).ok())
    }

    fn set_register(&mut self, index: MsrIndex, value: u64) -> Result<Taken, CallErrno> {
        Ok(match self.vcpu.host_write(index, value) {
            Ok(()) => Taken::Yes,
            Err(_) => Taken::No,
        })
    }

    /// Returns `linear` if it is canonical: the model has no paging.
    fn physical(&mut self, linear: u64) -> Result<Option<u64>, CallErrno> {
        Ok(is_canonical(linear).then_some(linear))
    }

    fn level(&mut self) -> Result<Level, CallErrno> {
        self.asked += 1;
        Ok(self.level)
    }

    fn rip(&self) -> Option<u64> {
        Some(self.vcpu.gprs().rip)
    }

    fn ask_for_registers(&mut self) {}
}

/// Returns the CPUID of the model's guests: an Intel processor with long mode and SYSENTER.
pub(super) fn cpuid() -> Vec<kvm_cpuid_entry2> {
    let word = |bytes: &[u8; 4]| u32::from_le_bytes(*bytes);
    vec![
        kvm_cpuid_entry2 {
            ebx: word(b"Genu"),
            edx: word(b"ineI"),
            ecx: word(b"ntel"),
            ..kvm_cpuid_entry2::default()
        },
        kvm_cpuid_entry2 {
            function: 1,
            eax: 0x606a6,
            edx: 1 << 11,
            ..kvm_cpuid_entry2::default()
        },
        kvm_cpuid_entry2 {
            function: 0x8000_0001,
            edx: 1 << 29 | 1 << 11,
            ..kvm_cpuid_entry2::default()
        },
    ]
}
