//! Tests of what a VMM should not notice of the library: on its threads, in the vCPU's pages, and in its children.

use std::process::Command;

use crate::lab::{ALLOWS, ANSWERS, DENIES, LOGS, Lab, Ran, ran, skip};

/// Returns the result of `notices WHAT` under a policy.
fn notices(policy: &str, what: &str) -> Option<Ran> {
    let lab = Lab::with_kvm(policy)?;
    let vmm = lab.build("notices.c", &[]);
    let ran = ran(lab.exec(&["--quiet"]).arg(vmm).arg(what));
    lab.assert_no_page_is_left();
    Some(ran)
}

/// Returns the output of `notices WHAT`, if that ended well.
fn shown(policy: &str, what: &str) -> Option<String> {
    let ran = notices(policy, what)?;
    assert_eq!((&*ran.err, ran.status), ("", 0), "{what}\n{}", ran.out);
    Some(ran.out)
}

/// Returns the output of `notices WHAT` without `exec`.
fn plain(what: &str) -> Option<String> {
    let lab = Lab::with_kvm(ALLOWS)?;
    let vmm = lab.build("notices.c", &[]);
    Some(ran(Command::new(vmm).arg(what)).out)
}

/// The value that KVM gives a guest whose VMM has set none.
const ZERO: &str =
    "policy = 1\ndefault = 'allow'\n[msrs]\n0x8b = { read = { value = 0 }, write = 'allow' }\n";
const LOGS_ALL: &str = "policy = 1\ndefault = 'allow'\nlog = 'first'\n";

#[test]
fn close_allocates_nothing_and_makes_no_call_but_to_wake_the_helper() {
    let Some(shown) = shown(DENIES, "closes") else {
        return;
    };
    let lines = "!\n".repeat(20);
    assert_eq!(shown, lines + "closed 40, allocations 0\n");
}

/// The last user of a VM is a thread that may neither close descriptors nor unmap pages.
#[test]
fn vm_closed_during_a_request_is_dropped_by_the_helper() {
    for policy in [DENIES, LOGS_ALL] {
        let Some(shown) = shown(policy, "closed-while-asked") else {
            return;
        };
        assert_eq!(shown, "closed\n", "{policy}");
    }
}

/// The guest makes no exit after the access, by which a lost kick would be seen late.
#[test]
fn kick_while_vcpu_is_bound_or_its_access_waits_is_seen() {
    for policy in [LOGS_ALL, ANSWERS] {
        let Some(shown) = shown(policy, "early-kicks") else {
            return;
        };
        assert_eq!(shown, "seen 100 of 100\n", "{policy}");
    }
}

#[test]
fn guest_runs_with_the_registers_that_vmm_asks_for() {
    let Some(plain) = plain("valid-registers") else {
        return;
    };
    assert!(
        plain.contains("own 5, during KVM_RUN 5, after it 5\n"),
        "{plain}"
    );
    for policy in [ALLOWS, ANSWERS, LOGS, LOGS_ALL] {
        assert_eq!(
            shown(policy, "valid-registers").as_ref(),
            Some(&plain),
            "{policy}"
        );
    }
}

#[test]
fn mask_that_vmm_changes_while_its_guest_runs_is_in_force() {
    for policy in [ALLOWS, LOGS, LOGS_ALL] {
        let Some(shown) = shown(policy, "mask-while-running") else {
            return;
        };
        let expected = "exits with the mask 50 of 50, none without it 50 of 50\n";
        assert_eq!(shown, expected, "{policy}");
    }
}

/// Each byte that an exit defines is the same, also where the library has answered or rewound an access before.
#[test]
fn pages_of_vcpu_are_those_without_policy() {
    let Some(plain) = plain("whole-pages") else {
        return;
    };
    assert!(
        plain.contains("exit 29: ") && plain.contains("5a5a5a5a5a5a5a5a"),
        "{plain}"
    );
    for policy in [ALLOWS, ZERO, LOGS, LOGS_ALL] {
        let shown = shown(policy, "whole-pages").unwrap();
        // An exit of the VMM's own under a policy that answers the access does not come.
        if policy == ZERO {
            let first = |text: &str| text.split("filter:").next().map(str::to_owned);
            assert_eq!(first(&shown), first(&plain));
        } else {
            assert_eq!(shown, plain, "{policy}");
        }
    }
}

#[test]
fn filter_on_what_is_no_vm_fails_as_without_policy() {
    let Some(plain) = plain("wrong-files") else {
        return;
    };
    assert_eq!(shown(ALLOWS, "wrong-files"), Some(plain));
}

/// While a forked child has a descriptor or a mapping of a VM, KVM keeps the VM.
#[test]
fn forked_child_has_no_descriptor_and_no_mapping_of_the_library() {
    let Some(plain) = plain("forked") else {
        return;
    };
    assert!(plain.contains("child: 4 5, "), "{plain}");
    for policy in [ALLOWS, LOGS_ALL] {
        assert_eq!(shown(policy, "forked"), Some(plain.clone()), "{policy}");
    }
}

#[test]
fn descriptor_passed_while_another_is_open_is_guarded() {
    let Some(shown) = shown(DENIES, "passed-while-open") else {
        return;
    };
    assert_eq!(shown, "!\n!\n");
}

/// The library cannot see a descriptor that is in a socket only. Its vCPU never runs without the policy.
#[test]
fn vcpu_whose_only_descriptor_was_in_a_socket_ends_vmm() {
    let Some(ran) = notices(DENIES, "passed-alone") else {
        return;
    };
    assert_eq!((&*ran.out, ran.status), ("received\n", 137), "{}", ran.err);
    assert!(
        ran.err.contains("a vCPU has run that has no gate"),
        "{}",
        ran.err
    );
}

#[test]
fn vm_with_descriptor_beyond_65535_is_refused_in_one_sentence() {
    let Some(ran) = notices(ALLOWS, "high-numbers") else {
        return;
    };
    if ran.out == "no such limit\n" {
        skip("nofile", "RLIMIT_NOFILE cannot be raised to 70000 here");
        return;
    }
    assert_eq!(ran.out, "VM -1, Too many open files\nnext 65536\n");
    let said = "msrgate: descriptors of VMs and vCPUs have to be below 65536: close some files, or lower RLIMIT_NOFILE\n";
    assert_eq!(ran.err, said);
}
