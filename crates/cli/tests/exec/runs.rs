//! Tests of `KVM_RUN` under `exec`: single steps, `immediate_exit`, kicks of a vCPU by signals, and accesses
//! that wait for a new filter.

use std::process::Command;

use crate::lab::{ALLOWS, ANSWERS, DENIES, LOGS, Lab, ran};

/// Runs the test VMM `runs` with the argument `what` under a policy, and returns its output.
fn guarded(policy: &str, what: &str) -> Option<String> {
    let lab = Lab::with_kvm(policy)?;
    let vmm = lab.build("runs.c", &[]);
    let ran = ran(lab.exec(&["--quiet"]).arg(vmm).arg(what));
    assert_eq!((&*ran.err, ran.status), ("", 0), "{}", ran.out);
    Some(ran.out)
}

/// Runs the test VMM `runs` with the argument `what` without `exec`, and returns its output.
fn plain(what: &str) -> Option<String> {
    let lab = Lab::with_kvm(ALLOWS)?;
    let vmm = lab.build("runs.c", &[]);
    Some(ran(Command::new(vmm).arg(what)).out)
}

/// A policy that answers reads of MSR 0x8b with 0, the value that KVM gives if the VMM has set none.
const ZERO: &str =
    "policy = 1\ndefault = 'allow'\n[msrs]\n0x8b = { read = { value = 0 }, write = 'allow' }\n";
const LOGS_ALL: &str = "policy = 1\ndefault = 'allow'\nlog = 'first'\n";

#[test]
fn single_stepping_guest_stops_at_same_addresses_as_without_policy() {
    let Some(steps) = plain("steps") else { return };
    assert!(steps.contains("exit 4 at 1004, al 0, bl 2e\n"), "{steps}");
    for policy in [ALLOWS, ZERO, LOGS, LOGS_ALL] {
        assert_eq!(guarded(policy, "steps").as_ref(), Some(&steps), "{policy}");
    }
    // The guest steps through its handler of #GP.
    let refused = plain("refused-steps").unwrap();
    assert!(refused.contains("exit 4 at 522,"), "{refused}");
    assert_eq!(guarded(DENIES, "steps"), Some(refused));
}

#[test]
fn immediate_exit_makes_kvm_run_return_as_without_policy() {
    let Some(plain) = plain("immediate-exit") else {
        return;
    };
    for policy in [ALLOWS, ZERO, LOGS, LOGS_ALL, DENIES] {
        let shown = guarded(policy, "immediate-exit");
        assert_eq!(shown.as_ref(), Some(&plain), "{policy}");
    }
}

/// The VMM's signal handler sets `immediate_exit` while the guest makes nothing but accesses that the policy
/// answers. `KVM_RUN` returns after each signal.
#[test]
fn immediate_exit_set_by_signal_handler_makes_kvm_run_return_although_policy_answers_access() {
    for policy in [ANSWERS, DENIES] {
        let Some(shown) = guarded(policy, "flag-kicks") else {
            return;
        };
        assert_eq!(shown, "all kicks seen\n", "{policy}");
    }
}

/// The VMM blocks a signal except during `KVM_RUN`, so the signal stays pending and no handler takes it.
/// `KVM_RUN` returns after each signal, also if the signal arrives between two calls of `KVM_RUN` that the
/// library makes.
#[test]
fn signal_that_only_kvm_run_unblocks_makes_kvm_run_return_although_policy_answers_access() {
    for policy in [ANSWERS, DENIES] {
        let Some(shown) = guarded(policy, "masked-kicks") else {
            return;
        };
        assert_eq!(shown, "all kicks seen\n", "{policy}");
    }
}

#[test]
fn msr_filter_that_vmm_changes_while_guest_runs_takes_effect() {
    for policy in [ALLOWS, LOGS, LOGS_ALL] {
        let Some(shown) = guarded(policy, "changes-while-running") else {
            return;
        };
        assert_eq!(shown, "exits after 50 of 50 changes\n", "{policy}");
    }
}

/// An access that waits for a new filter is rewound by a #GP. A VMM that gets EINTR meanwhile sees no
/// pending exception in the vCPU's events.
#[test]
fn vcpu_interrupted_while_access_waits_for_filter_has_no_pending_exception() {
    let Some(shown) = guarded(LOGS_ALL, "kicked-first-accesses") else {
        return;
    };
    let expected = "done 20 of 20, exceptions 0, dirty registers 0, interruptions: some\n";
    assert_eq!(shown, expected);
}

/// The policy denies a read only on Intel's processors. The CPUID that the VMM last set, by `KVM_SET_CPUID`
/// or `KVM_SET_CPUID2`, chooses the variant of the policy.
#[test]
fn cpuid_set_last_by_either_kvm_request_chooses_variant_of_policy() {
    let policy = "policy = 1\ndefault = 'allow'\n[[when]]\ncpu = { vendor = 'GenuineIntel' }\n[when.msrs]\n0x8b = { read = 'deny', write = 'allow' }\n";
    let Some(shown) = guarded(policy, "old-cpuid") else {
        return;
    };
    assert_eq!(shown, "!\n.\n");
    assert_eq!(guarded(policy, "cpuid-twice").as_deref(), Some("!\n"));
}
