//! A VM with a vCPU that is about to access an MSR.

use msrgate_filter::{
    Accesses, Bitmap, Capability, DefaultAction, Exit, ExitReason, Filter, Gprs, Instruction,
    MsrIndex, Range, ReasonMask, Register, RegisterMap, Revision, RunExit, Vcpu, Vm,
};

/// The index of a register that accepts any value.
pub(crate) const PLAIN: MsrIndex = MsrIndex::new(0x10);
/// The index of a register whose upper 32 bits are reserved.
pub(crate) const PICKY: MsrIndex = MsrIndex::new(0x277);
/// The index of an x2APIC register that accepts any value.
pub(crate) const X2APIC_TPR: MsrIndex = MsrIndex::new(0x808);
/// An index that no register has.
pub(crate) const MISSING: MsrIndex = MsrIndex::new(0xdead);

/// The initial value of the registers.
pub(crate) const INITIAL: u64 = 0x1122_3344_5566_7788;

/// The address of the guest's RDMSR or WRMSR.
pub(crate) const AT: u64 = 0xffff_8000_0000_1000;
/// The address of the instruction after the RDMSR or WRMSR.
pub(crate) const PAST: u64 = AT + Instruction::LENGTH;

pub(crate) fn registers() -> RegisterMap {
    let picky = Register {
        value: 6,
        writable: 0xffff_ffff,
    };
    RegisterMap::from_iter([
        (PLAIN, Register::new(INITIAL)),
        (X2APIC_TPR, Register::new(INITIAL)),
        (PICKY, picky),
    ])
}

/// Creates a VM in which accesses that fail for these reasons exit.
pub(crate) fn vm(revision: Revision, reasons: &[ExitReason]) -> Vm {
    let vm = Vm::new(revision);
    let mask = ReasonMask::of(revision, reasons);
    vm.enable_cap(Capability::user_space_msr(revision), mask.bits())
        .expect("a mask of known reasons");
    vm
}

/// Creates a filter that denies these MSRs and allows all others.
pub(crate) fn denying(revision: Revision, accesses: Accesses, indices: &[MsrIndex]) -> Filter {
    let deny = |index: &MsrIndex| {
        let bitmap = Bitmap::from_fn(1, |_| false).expect("one MSR");
        Range::new(accesses, *index, bitmap)
    };
    let ranges = indices.iter().map(deny).collect();
    Filter::new(revision, DefaultAction::Allow, ranges).expect("a few ranges")
}

/// Creates a VM with one vCPU. The VM's filter denies reads and writes of the MSRs in `denied`, and
/// every access that fails exits to user space.
pub(crate) fn guarded(revision: Revision, denied: &[MsrIndex]) -> (Vm, Vcpu<RegisterMap>) {
    let vm = vm(revision, &ExitReason::ALL);
    vm.set_filter(&denying(revision, Accesses::Both, denied))
        .expect("a filter of the same revision");
    let vcpu = vm.create_vcpu(registers());
    (vm, vcpu)
}

/// Returns the general registers of a guest with this index in ECX and this value in EDX:EAX. The
/// upper 32 bits of RAX, RCX and RDX are not 0.
pub(crate) const fn about_to_access(index: MsrIndex, value: u64) -> Gprs {
    Gprs {
        rax: 0xaaaa_aaaa_0000_0000 | value & 0xffff_ffff,
        rcx: 0xcccc_cccc_0000_0000 | index.get() as u64,
        rdx: 0xdddd_dddd_0000_0000 | value >> 32,
        rip: AT,
    }
}

/// Returns the registers of a guest that is about to read this MSR, with an old value in EDX:EAX.
pub(crate) const fn about_to_read(index: MsrIndex) -> Gprs {
    about_to_access(index, 0x0bad_0bad_0bad_0bad)
}

pub(crate) fn read(vcpu: &mut Vcpu<RegisterMap>, index: MsrIndex) -> RunExit {
    vcpu.set_gprs(about_to_read(index));
    vcpu.run(Instruction::Rdmsr)
}

pub(crate) fn write(vcpu: &mut Vcpu<RegisterMap>, index: MsrIndex, value: u64) -> RunExit {
    vcpu.set_gprs(about_to_access(index, value));
    vcpu.run(Instruction::Wrmsr)
}

/// Returns the exit reason if the outcome is an MSR exit.
pub(crate) fn reason(outcome: RunExit) -> Option<ExitReason> {
    match outcome {
        RunExit::Msr(Exit { reason, .. }) => Some(reason),
        _ => None,
    }
}

/// The outcome of a #GP with the correct RIP: the address of the RDMSR or WRMSR.
pub(crate) const FAULT: RunExit = RunExit::GeneralProtection { rip: AT };
