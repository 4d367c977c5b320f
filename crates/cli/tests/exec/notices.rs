//! Tests that a VMM does not notice msrgate's library: on the VMM's threads, in its vCPUs' `kvm_run` pages,
//! and in its child processes.

use std::process::Command;

use crate::lab::{ALLOWS, ANSWERS, DENIES, LOGS, Lab, Ran, ran, skip};

/// Runs the test VMM `notices` with the argument `what` under a policy, and returns its output and exit status.
fn notices(policy: &str, what: &str) -> Option<Ran> {
    let lab = Lab::with_kvm(policy)?;
    let vmm = lab.build("notices.c", &[]);
    let ran = ran(lab.exec(&["--quiet"]).arg(vmm).arg(what));
    lab.assert_no_page_is_left();
    Some(ran)
}

/// Runs the test VMM `notices` with the argument `what` under a policy, and returns its output. Asserts that
/// the VMM ended with status 0 and without a message.
fn shown(policy: &str, what: &str) -> Option<String> {
    let ran = notices(policy, what)?;
    assert_eq!((&*ran.err, ran.status), ("", 0), "{what}\n{}", ran.out);
    Some(ran.out)
}

/// Runs the test VMM `notices` with the argument `what` without `exec`, and returns its output.
fn plain(what: &str) -> Option<String> {
    let lab = Lab::with_kvm(ALLOWS)?;
    let vmm = lab.build("notices.c", &[]);
    Some(ran(Command::new(vmm).arg(what)).out)
}

/// A policy that answers reads of MSR 0x8b with 0, the value that KVM gives if the VMM has set none.
const ZERO: &str =
    "policy = 1\ndefault = 'allow'\n[msrs]\n0x8b = { read = { value = 0 }, write = 'allow' }\n";
const LOGS_ALL: &str = "policy = 1\ndefault = 'allow'\nlog = 'first'\n";

#[test]
fn close_function_of_library_allocates_no_memory_and_only_wakes_helper_thread() {
    let Some(shown) = shown(DENIES, "closes") else {
        return;
    };
    let lines = "!\n".repeat(20);
    assert_eq!(shown, lines + "closed 40, allocations 0\n");
}

/// A VM is closed while another thread makes a request of it. The helper thread then drops the VM, because
/// seccomp forbids the other thread to close descriptors and unmap pages.
#[test]
fn vm_closed_during_request_of_another_thread_is_dropped_by_helper_thread() {
    for policy in [DENIES, LOGS_ALL] {
        let Some(shown) = shown(policy, "closed-while-asked") else {
            return;
        };
        assert_eq!(shown, "closed\n", "{policy}");
    }
}

/// The VMM kicks a vCPU while the library binds it to its gate, or while its access waits for a new filter.
/// `KVM_RUN` returns after each kick, although the guest makes no further exit.
#[test]
fn signal_during_binding_of_vcpu_or_wait_for_filter_makes_kvm_run_return() {
    for policy in [LOGS_ALL, ANSWERS] {
        let Some(shown) = shown(policy, "early-kicks") else {
            return;
        };
        assert_eq!(shown, "seen 100 of 100\n", "{policy}");
    }
}

#[test]
fn guest_runs_with_registers_that_vmm_wrote_into_kvm_run_page() {
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
fn exit_reason_mask_that_vmm_changes_while_guest_runs_takes_effect() {
    for policy in [ALLOWS, LOGS, LOGS_ALL] {
        let Some(shown) = shown(policy, "mask-while-running") else {
            return;
        };
        let expected = "exits with the mask 50 of 50, none without it 50 of 50\n";
        assert_eq!(shown, expected, "{policy}");
    }
}

/// Each byte of the vCPU's `kvm_run` page that an exit defines is the same as without a policy, even after
/// the library has answered or rewound an access.
#[test]
fn kvm_run_page_after_exit_is_the_same_as_without_policy() {
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
fn filter_request_on_descriptor_that_is_no_vm_fails_as_without_exec() {
    let Some(plain) = plain("wrong-files") else {
        return;
    };
    assert_eq!(shown(ALLOWS, "wrong-files"), Some(plain));
}

/// A forked child has none of the library's descriptors and mappings of a VM. With one of them, the child
/// would keep the VM alive after the parent closes it.
#[test]
fn forked_child_has_none_of_library_descriptors_and_mappings() {
    let Some(plain) = plain("forked") else {
        return;
    };
    assert!(plain.contains("child: 4 5, "), "{plain}");
    for policy in [ALLOWS, LOGS_ALL] {
        assert_eq!(shown(policy, "forked"), Some(plain.clone()), "{policy}");
    }
}

#[test]
fn vcpu_is_guarded_by_descriptor_received_from_socket_while_its_first_one_is_open() {
    let Some(shown) = shown(DENIES, "passed-while-open") else {
        return;
    };
    assert_eq!(shown, "!\n!\n");
}

/// The VMM sends the only descriptor of a vCPU through a socket, where the library cannot see it. When the
/// vCPU runs, the library ends the VMM.
#[test]
fn vmm_is_ended_if_only_descriptor_of_running_vcpu_passed_through_socket() {
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
fn vm_with_descriptor_number_above_65535_is_refused_with_one_line_of_message() {
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
