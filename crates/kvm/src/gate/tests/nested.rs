//! A guest that runs guests, on the model: what `crates/kvm/tests/nested` shows where a KVM has SVM.

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

/// The model's CPUID with these bits of ECX in this leaf.
fn cpuid_with(function: u32, ecx: u32) -> Vec<kvm_cpuid_entry2> {
    let mut cpuid = model::cpuid();
    let mut leaves = cpuid.iter_mut();
    leaves.find(|leaf| leaf.function == function).unwrap().ecx |= ecx;
    cpuid
}

const VMX: (u32, u32) = (1, 1 << 5);
const SVM: (u32, u32) = (0x8000_0001, 1 << 2);

#[test]
fn the_kernel_is_asked_who_runs_only_where_a_guest_may_nest() {
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

/// Of a nested guest writes that would be carried are refused, and pin nothing; what is only to be
/// seen it does itself.
#[test]
fn a_nested_guests_accesses_are_not_carried() {
    let program = policy("default = 'deny'", CARRIED);
    let mut machine = machine(program, ModelVm::that_nests(), cpuid_with(SVM.0, SVM.1));
    let vcpu = machine.first();
    assert_eq!(run(vcpu, Level::Nested, Write(LSTAR, 5)), Saw::Fault);
    assert_eq!(run(vcpu, Level::Nested, Write(FMASK, 5)), Saw::Fault);
    assert_eq!(run(vcpu, Level::Nested, Write(STAR, 5)), Saw::Written);
    assert_eq!(run(vcpu, Level::Guest, Write(LSTAR, 6)), Saw::Written);
    // Not even a value that its hypervisor may write again: it is not what the register holds.
    assert_eq!(run(vcpu, Level::Nested, Write(LSTAR, 6)), Saw::Fault);
    assert_eq!(run(vcpu, Level::Guest, Write(LSTAR, 6)), Saw::Written);
    assert_eq!(run(vcpu, Level::Guest, Read(LSTAR)), Saw::Value(6));
    assert_eq!(run(vcpu, Level::Guest, Read(FMASK)), Saw::Value(0));
}

/// An audit refuses nothing, and still carries nothing for a nested guest: it does itself what its
/// hypervisor would have carried, and what came before holds. So with nothing else to be opened for.
#[test]
fn in_an_audit_a_nested_guest_does_it_itself() {
    let entries = "IA32_LSTAR = { read = 'allow', write = 'pin' }";
    let program = policy("default = 'allow'\nmode = 'audit'\nlog = 'none'", entries);
    let mut machine = machine(program, ModelVm::that_nests(), cpuid_with(SVM.0, SVM.1));
    let vcpu = machine.first();
    assert_eq!(run(vcpu, Level::Guest, Write(LSTAR, 4)), Saw::Written);
    assert_eq!(run(vcpu, Level::Nested, Write(LSTAR, 5)), Saw::Written);
    assert_eq!(run(vcpu, Level::Nested, Read(LSTAR)), Saw::Value(5));
}
