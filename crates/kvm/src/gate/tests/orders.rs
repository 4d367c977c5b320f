//! Calls in an order in which they do not work: each is an error that says what to call, and what the
//! guest asks for meanwhile is a #GP.

mod of_gate;
mod of_vcpu;

use kvm_bindings::kvm_cpuid_entry2;
use msrgate_filter::MsrIndex;
use msrgate_policy::Program;

use super::machine::{policy, program};
use crate::probe::HostCaps;

/// A register of user space, and one of the VMM's own code.
const SPARE: MsrIndex = MsrIndex::new(0x1_0000);
const HANDLED: MsrIndex = MsrIndex::new(0x1_0001);

/// An answer, a handler, a pin, and what KVM does itself.
fn entries() -> Program {
    policy(
        "default = 'deny'",
        "0x10000 = { read = { value = 7 }, write = 'ignore' }\n\
         0x10001 = { read = { handler = 'x' }, write = 'deny' }\n\
         IA32_LSTAR = { read = 'allow', write = 'pin' }\n\
         IA32_STAR = 'rw'",
    )
}

/// One variant for AMD's processors, another for the rest.
fn whens() -> Program {
    program(
        "policy = 1\ndefault = 'deny'\n[msrs]\n\
         0x10000 = { read = { value = 1 }, write = 'deny' }\n\
         [[when]]\ncpu = { vendor = 'AuthenticAMD' }\n[when.msrs]\n\
         0x10000 = { read = { value = 3 }, write = 'deny', override = true }",
    )
}

/// Changes what a CPUID says of one leaf.
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
