//! Tests of a guest that runs nested guests, on the model. `crates/kvm/tests/nested` has such tests for a
//! real KVM with SVM.

use kvm_bindings::kvm_cpuid_entry2;
use msrgate_policy::Program;

use super::machine::{FMASK, LSTAR, Machine, STAR, Saw, Vcpu, policy};
use super::model::{self, ModelGuest, ModelVm};
use crate::gate::GateOptions;
use crate::measure::guest::Op::{self, Read, Write};
use crate::sys::calls::Level;

const CARRIED: &str = "IA32_LSTAR = { read = 'allow', write = 'pin' }\n\
    IA32_FMASK = { read = 'allow', write = { sticky = '0x200' } }\n\
    IA32_STAR = { read = 'allow', write = 'allow', log = 'all' }";

fn machine(program: Program, vm: ModelVm, cpuid: Vec<kvm_cpuid_entry2>) -> Machine<ModelGuest> {
    let guests = vec![ModelGuest::new(&vm.vm)];
    Machine::in_model(program, Box::new(vm), guests, GateOptions::new(), cpuid)
}

/// Returns the model's CPUID with these bits of ECX set in this leaf.
fn cpuid_with(function: u32, ecx: u32) -> Vec<kvm_cpuid_entry2> {
    let mut cpuid = model::cpuid();
    let mut leaves = cpuid.iter_mut();
    leaves.find(|leaf| leaf.function == function).unwrap().ecx |= ecx;
    cpuid
}

const VMX: (u32, u32) = (1, 1 << 5);
const SVM: (u32, u32) = (0x8000_0001, 1 << 2);

#[test]
fn gate_asks_which_guest_runs_only_if_guest_may_run_nested_guests() {
    let script = [Write(LSTAR, 5), Read(STAR), Write(FMASK, 5)];
    for ((function, ecx), vm, asked) in [
        (VMX, ModelVm::that_nests(), 3),
        (SVM, ModelVm::that_nests(), 3),
        ((1, 0), ModelVm::that_nests(), 0),
        (VMX, ModelVm::new(), 0),
        (SVM, ModelVm::new(), 0),
    ] {
        let program = policy("default = 'deny'", CARRIED);
        let mut machine = machine(program, vm, cpuid_with(function, ecx));
        let vcpu = machine.first();
        let saw = vcpu.run(&script);
        assert_eq!(saw, [Saw::Written, Saw::Value(0), Saw::Written]);
        assert_eq!(vcpu.guest.asked(), asked, "{function:#x} {ecx:#x}");
    }
}

fn run(vcpu: &mut Vcpu<ModelGuest>, level: Level, op: Op) -> Saw {
    vcpu.guest.runs(level);
    vcpu.run(&[op])[0]
}

/// If a nested guest writes to an MSR whose writes the gate would forward for the guest, the write is
/// refused and pins nothing. If an access is only logged, the nested guest executes the access itself.
#[test]
fn access_of_nested_guest_is_not_forwarded() {
    let program = policy("default = 'deny'", CARRIED);
    let mut machine = machine(program, ModelVm::that_nests(), cpuid_with(SVM.0, SVM.1));
    let vcpu = machine.first();
    assert_eq!(run(vcpu, Level::Nested, Write(LSTAR, 5)), Saw::Fault);
    assert_eq!(run(vcpu, Level::Nested, Write(FMASK, 5)), Saw::Fault);
    assert_eq!(run(vcpu, Level::Nested, Write(STAR, 5)), Saw::Written);
    assert_eq!(run(vcpu, Level::Guest, Write(LSTAR, 6)), Saw::Written);
    // The guest, as hypervisor, has pinned the value 6 and may write it again. The gate refuses even this
    // value to the nested guest, whose own register does not hold it.
    assert_eq!(run(vcpu, Level::Nested, Write(LSTAR, 6)), Saw::Fault);
    assert_eq!(run(vcpu, Level::Guest, Write(LSTAR, 6)), Saw::Written);
    assert_eq!(run(vcpu, Level::Guest, Read(LSTAR)), Saw::Value(6));
    assert_eq!(run(vcpu, Level::Guest, Read(FMASK)), Saw::Value(0));
}

/// In audit mode the gate refuses no access of a nested guest, and forwards no write for the nested guest
/// either: the nested guest executes the access itself, and the pin of its hypervisor stays. Under this
/// policy the gate widens the filter only for accesses to the pinned register.
#[test]
fn audit_mode_lets_nested_guest_execute_access_itself() {
    let entries = "IA32_LSTAR = { read = 'allow', write = 'pin' }";
    let program = policy("default = 'allow'\nmode = 'audit'\nlog = 'none'", entries);
    let mut machine = machine(program, ModelVm::that_nests(), cpuid_with(SVM.0, SVM.1));
    let vcpu = machine.first();
    assert_eq!(run(vcpu, Level::Guest, Write(LSTAR, 4)), Saw::Written);
    assert_eq!(run(vcpu, Level::Nested, Write(LSTAR, 5)), Saw::Written);
    assert_eq!(run(vcpu, Level::Nested, Read(LSTAR)), Saw::Value(5));
}
