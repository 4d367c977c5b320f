//! Tests of `KVM_RUN`: single steps, `immediate_exit`, kicks, and accesses that wait for a filter.

use std::process::Command;

use crate::lab::{ALLOWS, ANSWERS, DENIES, LOGS, Lab, ran};

/// Returns the output of `runs WHAT` under a policy.
fn guarded(policy: &str, what: &str) -> Option<String> {
    let lab = Lab::with_kvm(policy)?;
    let vmm = lab.build("runs.c", &[]);
    let ran = ran(lab.exec(&["--quiet"]).arg(vmm).arg(what));
    assert_eq!((&*ran.err, ran.status), ("", 0), "{}", ran.out);
    Some(ran.out)
}

/// Returns the output of `runs WHAT` without `exec`.
fn plain(what: &str) -> Option<String> {
    let lab = Lab::with_kvm(ALLOWS)?;
    let vmm = lab.build("runs.c", &[]);
    Some(ran(Command::new(vmm).arg(what)).out)
}

/// The value that KVM gives a guest whose VMM has set none.
const ZERO: &str =
    "policy = 1\ndefault = 'allow'\n[msrs]\n0x8b = { read = { value = 0 }, write = 'allow' }\n";
const LOGS_ALL: &str = "policy = 1\ndefault = 'allow'\nlog = 'first'\n";

#[test]
fn single_steps_are_those_without_policy() {
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
fn immediate_exit_keeps_its_meaning() {
    let Some(plain) = plain("immediate-exit") else {
        return;
    };
    for policy in [ALLOWS, ZERO, LOGS, LOGS_ALL, DENIES] {
        let shown = guarded(policy, "immediate-exit");
        assert_eq!(shown.as_ref(), Some(&plain), "{policy}");
    }
}

/// The guest does nothing but accesses that the policy answers.
#[test]
fn kick_by_immediate_exit_from_a_signal_handler_is_seen() {
    for policy in [ANSWERS, DENIES] {
        let Some(shown) = guarded(policy, "flag-kicks") else {
            return;
        };
        assert_eq!(shown, "seen 1000 of 1000\n", "{policy}");
    }
}

/// The kick ends `KVM_RUN` by being pending, as no handler takes it: none is lost between two of the library's.
#[test]
fn kick_by_a_signal_that_kvm_run_unblocks_is_seen() {
    for policy in [ANSWERS, DENIES] {
        let Some(shown) = guarded(policy, "masked-kicks") else {
            return;
        };
        assert_eq!(shown, "seen 1000 of 1000\n", "{policy}");
    }
}

#[test]
fn filter_that_vmm_changes_while_its_guest_runs_is_in_force() {
    for policy in [ALLOWS, LOGS, LOGS_ALL] {
        let Some(shown) = guarded(policy, "changes-while-running") else {
            return;
        };
        assert_eq!(shown, "exits after 50 of 50 changes\n", "{policy}");
    }
}

/// An access that waits for a filter is rewound by a #GP, which the VMM must not see: it may write the vCPU's
/// events back.
#[test]
fn vcpu_interrupted_while_an_access_waits_has_no_exception() {
    let Some(shown) = guarded(LOGS_ALL, "kicked-first-accesses") else {
        return;
    };
    let expected = "done 20 of 20, exceptions 0, dirty registers 0, interruptions: some\n";
    assert_eq!(shown, expected);
}

/// The policy denies the read on Intel's processors only.
#[test]
fn last_cpuid_of_either_request_chooses_the_variant() {
    let policy = "policy = 1\ndefault = 'allow'\n[[when]]\ncpu = { vendor = 'GenuineIntel' }\n[when.msrs]\n0x8b = { read = 'deny', write = 'allow' }\n";
    let Some(shown) = guarded(policy, "old-cpuid") else {
        return;
    };
    assert_eq!(shown, "!\n.\n");
    assert_eq!(guarded(policy, "cpuid-twice").as_deref(), Some("!\n"));
}
