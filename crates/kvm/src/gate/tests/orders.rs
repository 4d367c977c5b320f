//! Tests of calls in a wrong order. Each call that a VMM makes too early returns an error that names the
//! call that is missing. The guest's accesses in the meantime are #GPs.

mod of_gate;
mod of_vcpu;

use kvm_bindings::kvm_cpuid_entry2;
use msrgate_filter::MsrIndex;
use msrgate_policy::Program;

use super::machine::{policy, program};
use crate::probe::HostCaps;

/// An MSR that the gate answers by the action `value`, and an MSR that a handler of the VMM's
/// answers.
const SPARE: MsrIndex = MsrIndex::new(0x1_0000);
const HANDLED: MsrIndex = MsrIndex::new(0x1_0001);

/// Returns a policy with the actions `value`, `handler` and `pin`, and with an MSR that KVM
/// handles.
fn entries() -> Program {
    policy(
        "default = 'deny'",
        "0x10000 = { read = { value = 7 }, write = 'ignore' }\n\
         0x10001 = { read = { handler = 'x' }, write = 'deny' }\n\
         IA32_LSTAR = { read = 'allow', write = 'pin' }\n\
         IA32_STAR = 'rw'",
    )
}

/// Returns a policy with one variant for AMD processors and another for all other processors.
fn whens() -> Program {
    program(
        "policy = 1\ndefault = 'deny'\n[msrs]\n\
         0x10000 = { read = { value = 1 }, write = 'deny' }\n\
         [[when]]\ncpu = { vendor = 'AuthenticAMD' }\n[when.msrs]\n\
         0x10000 = { read = { value = 3 }, write = 'deny', override = true }",
    )
}

/// Returns a CPUID with one leaf changed.
fn with_leaf(
    cpuid: &[kvm_cpuid_entry2],
    function: u32,
    change: impl FnOnce(&mut kvm_cpuid_entry2),
) -> Vec<kvm_cpuid_entry2> {
    let mut cpuid = cpuid.to_vec();
    let leaf = cpuid.iter_mut().find(|leaf| leaf.function == function);
    change(leaf.expect("every processor has it"));
    cpuid
}
