//! Tests of `exec` with small VMMs that do on purpose what is difficult for it: seccomp, filters of their
//! own, signals, fork(2).

use std::process::Command;

use msrgate_testing::host;

use crate::lab::{ALLOWS, ANSWERS, DENIES, KILLS, LOGS, Lab, ran};

/// Each policy has its effect on a VMM that has put its threads under a strict seccomp filter.
#[test]
fn policy_takes_effect_in_vmm_whose_seccomp_filter_allows_few_system_calls() {
    let policies = [
        (ALLOWS, ".\n", 0),
        (DENIES, "!\n", 0),
        (ANSWERS, ".\n", 0),
        (LOGS, ".\n", 0),
        (KILLS, "", 128 + 9),
    ];
    for (policy, out, status) in policies {
        let Some(lab) = Lab::with_kvm(policy) else {
            return;
        };
        let strict = lab.build("strict.c", &[]);
        let ran = ran(lab.exec(&[]).arg(strict));
        assert_eq!(
            (&*ran.out, ran.status),
            (out, status),
            "{policy}{}",
            ran.err
        );
    }
}

/// The vCPU's thread may call little but `KVM_RUN`. Another thread of the VMM sets an MSR filter of its own
/// and removes it while the vCPU is in `KVM_RUN`. The guest then executes an access again that the removed
/// filter had refused.
#[test]
fn access_runs_again_after_vmm_under_seccomp_removes_its_own_msr_filter() {
    let Some(lab) = Lab::with_kvm(ALLOWS) else {
        return;
    };
    let strict = lab.build("strict.c", &[]);
    let ran = ran(lab.exec(&["--quiet"]).arg(strict).arg("own-filter"));
    assert_eq!((&*ran.out, &*ran.err, ran.status), ("\n", "", 0));
}

#[test]
fn audit_mode_lets_every_access_through_in_vmm_under_seccomp() {
    let Some(lab) = Lab::with_kvm(DENIES) else {
        return;
    };
    let strict = lab.build("strict.c", &[]);
    let ran = ran(lab.exec(&["--audit"]).arg(strict));
    assert_eq!((&*ran.out, ran.status), (".\n", 0), "{}", ran.err);
    assert!(
        ran.err.contains("would have refused at least 1 access\n"),
        "{}",
        ran.err
    );
}

/// Runs the test VMM `awkward` with the argument `what` under a policy, and returns its output.
fn awkward(policy: &str, what: &str) -> Option<String> {
    let lab = Lab::with_kvm(policy)?;
    let vmm = lab.build("awkward.c", &[]);
    let ran = ran(lab.exec(&["--quiet"]).arg(vmm).arg(what));
    assert_eq!((&*ran.err, ran.status), ("", 0), "{}", ran.out);
    lab.assert_no_page_is_left();
    Some(ran.out)
}

/// Runs the test VMM `awkward` with the argument `what` without `exec`, and returns its output.
fn plain(what: &str) -> Option<String> {
    let lab = Lab::with_kvm(ALLOWS)?;
    let vmm = lab.build("awkward.c", &[]);
    Some(ran(Command::new(vmm).arg(what)).out)
}

/// The VMM prints the kernel's answers to valid and invalid requests for filters and masks, its exits, and
/// the guest's results. All are the same under a policy that allows everything.
#[test]
fn filter_and_mask_that_vmm_sets_work_as_without_exec_if_policy_allows_all() {
    let Some(plain) = plain("own-filter") else {
        return;
    };
    assert!(plain.contains("[exit 8b 4]7"), "{plain}");
    assert_eq!(awkward(ALLOWS, "own-filter"), Some(plain));
}

/// If the VMM's own filter denies by default, it denies MSR 0xffffffff, too. Under a policy that allows the
/// MSR, the VMM gets the exit, or the guest the #GP, as without `exec`, and the summary does not count a
/// refusal.
#[test]
fn access_of_msr_0xffffffff_that_policy_allows_still_obeys_filter_of_vmm() {
    let Some(plain) = plain("last-msr") else {
        return;
    };
    assert!(plain.contains("[exit ffffffff 2]7") && plain.contains("[exit ffffffff 4]7"));
    let lab = Lab::with_kvm(ALLOWS).unwrap();
    let vmm = lab.build("awkward.c", &[]);
    let ran = ran(lab.exec(&[]).arg(&vmm).arg("last-msr"));
    assert_eq!(ran.out, plain);
    assert!(ran.err.ends_with("refused nothing\n"), "{}", ran.err);
    let logs = "policy = 1\ndefault = 'allow'\nlog = 'first'\n";
    let few = "policy = 1\ndefault = 'allow'\n[msrs]\n0x10000 = 'none'\n0xfffffff0 = 'none'\n";
    for policy in [logs, few] {
        assert_eq!(awkward(policy, "last-msr"), Some(plain.clone()), "{policy}");
    }
    let audits = "policy = 1\ndefault = 'deny'\nmode = 'audit'\n";
    assert_eq!(awkward(audits, "last-msr"), Some(plain));
}

/// The VMM gets no exit for an access that the policy denies, although its own filter and mask ask for the
/// exit. The VMM still gets exits for an MSR that KVM does not know.
#[test]
fn filter_of_vmm_cannot_allow_access_that_policy_denies() {
    let Some(shown) = awkward(DENIES, "own-filter") else {
        return;
    };
    assert!(!shown.contains("[exit 8b"), "{shown}");
    assert!(shown.contains("[exit 12345678 2]7."), "{shown}");
    // These are 0x10, which both allow, and the unknown MSR.
    assert_eq!(
        shown.lines().filter(|line| line.ends_with('.')).count(),
        2,
        "{shown}"
    );
}

/// If the VMM's mask asks for accesses that KVM itself refuses, of an unknown MSR or with an invalid value,
/// the VMM gets these exits under every policy.
#[test]
fn access_that_kvm_itself_refuses_exits_to_vmm_whose_mask_asks_for_it() {
    let Some(plain) = plain("invalid") else {
        return;
    };
    for exit in ["[write c0000080 1]", "[exit 12345678 2]7"] {
        assert!(plain.contains(exit), "{plain}");
    }
    let logs = "policy = 1\ndefault = 'allow'\nlog = 'first'\n";
    for policy in [ALLOWS, DENIES, logs] {
        assert_eq!(
            awkward(policy, "invalid").as_ref(),
            Some(&plain),
            "{policy}"
        );
    }
}

/// While the VMM's mask asks for exits of unknown MSRs, the VMM answers accesses of such MSRs. While the
/// mask does not, the policy's `unknown` answers them.
#[test]
fn policy_answers_unknown_msr_only_while_mask_of_vmm_does_not_ask_for_exit() {
    let Some(plain) = plain("invalid") else {
        return;
    };
    let policy = "policy = 1\ndefault = 'allow'\nunknown = { read = '0x5', write = 'ignore' }\n";
    // `[exit 12345678 2]` comes where the mask has the bit for unknown MSRs; else the guest reads 5.
    assert!(plain.contains("[exit 12345678 2]7.\n") && plain.contains("!\n"));
    let mut expected = String::new();
    let mut asks = false;
    let mut reads = 0;
    for line in plain.lines() {
        if let Some(mask) = line.strip_prefix("mask ") {
            asks = ["2", "3", "6", "7"].iter().any(|one| mask.starts_with(one));
            reads = 0;
        } else {
            reads += 1;
        }
        // The second line after a mask is of the unknown MSR, and the first of the refused write.
        expected += if reads == 2 && !asks { "." } else { line };
        expected.push('\n');
    }
    assert_eq!(awkward(policy, "invalid"), Some(expected));
}

/// KVM's filter has 16 ranges, which the policy and the VMM's own filter share. If both need more, the VMM's
/// request fails with ENOMEM, and one sentence says why.
#[test]
fn filter_of_vmm_is_refused_with_message_if_it_and_policy_need_over_16_ranges() {
    let policy = "policy = 1\ndefault = 'allow'\n[msrs]\n0x1000 = 'none'\n0x90000000 = 'none'\n";
    let Some(lab) = Lab::with_kvm(policy) else {
        return;
    };
    let vmm = lab.build("awkward.c", &[]);
    let ran = ran(lab.exec(&["--quiet"]).arg(vmm).arg("many-ranges"));
    // The VMM's filter from before stays in force.
    let expected = "filter: 0 \nfilter: -1 Cannot allocate memory\n!\n";
    assert_eq!((&*ran.out, ran.status), (expected, 0));
    let said = "msrgate: the VMM's own MSR filter and the policy take more than KVM's 16 ranges together: name fewer clusters of MSRs in the policy\n";
    assert_eq!(ran.err, said);
}

#[test]
fn request_for_encrypted_vm_is_refused_with_one_line_of_message() {
    let Some(lab) = Lab::with_kvm(ALLOWS) else {
        return;
    };
    let vmm = lab.build("awkward.c", &[]);
    let ran = ran(lab.exec(&["--quiet"]).arg(vmm).arg("encrypted"));
    assert_eq!(ran.out, "-1 Operation not permitted\n");
    assert_eq!(ran.err.lines().count(), 1, "{}", ran.err);
    assert!(ran.err.contains("run it without SEV"), "{}", ran.err);
}

/// All VMs of a process share the library's helper thread, which also sets their filters: with two VMs, and
/// with twelve, the library has one thread.
#[test]
fn library_has_one_thread_that_blocks_all_signals_for_all_vms_of_process() {
    // glibc blocks neither its own two signals nor SIGKILL and SIGSTOP.
    let thread = "msrgate fffffffe7ffbfeff\n";
    let audit = "policy = 1\nmode = 'audit'\ndefault = 'deny'\n";
    for (policy, read) in [(DENIES, "!\n"), (LOGS, ".\n"), (audit, ".\n")] {
        let Some(shown) = awkward(policy, "threads") else {
            return;
        };
        let (two, ten) = (read.repeat(2), read.repeat(10));
        assert_eq!(shown, format!("{two}{thread}{ten}{thread}"), "{policy}");
    }
}

#[test]
fn vms_made_one_after_another_on_same_descriptor_numbers_are_guarded_without_leaks() {
    let Some(shown) = awkward(DENIES, "reboots") else {
        return;
    };
    let expected = "!\n".repeat(10) + "same numbers 10 of 10, more files 0, more threads 0\n";
    assert_eq!(shown, expected);
}

#[test]
fn two_vms_at_once_are_guarded_and_vm_used_by_duplicated_descriptors_too() {
    for what in ["two", "duplicated"] {
        let Some(shown) = awkward(DENIES, what) else {
            return;
        };
        assert_eq!(shown, "!\n!\n!\n", "{what}");
    }
}

#[test]
fn library_keeps_no_descriptor_of_vm_closed_by_dup2_or_close_range() {
    let Some(shown) = awkward(DENIES, "unseen") else {
        return;
    };
    assert_eq!(shown, "!\n!\n!\n!\nleft: 0\n");
}

#[test]
fn vms_of_forked_child_and_of_its_parent_are_both_guarded() {
    let Some(shown) = awkward(DENIES, "children") else {
        return;
    };
    assert_eq!(shown, "child !\nparent !\n");
}

/// The guest makes only accesses that the policy answers, so that `KVM_RUN` gives the VMM no exit. The VMM
/// kicks the vCPU by signals, and `KVM_RUN` returns after each.
#[test]
fn signal_makes_kvm_run_return_although_policy_answers_every_access_of_guest() {
    let Some(shown) = awkward(ANSWERS, "kicks") else {
        return;
    };
    assert_eq!(shown, "all kicks seen, no exception\n");
}

#[test]
fn kvm_run_never_returns_eintr_to_vmm_that_catches_no_signal() {
    for policy in [ANSWERS, DENIES] {
        let Some(shown) = awkward(policy, "uncaught") else {
            return;
        };
        assert_eq!(shown, "0, exit 2\n");
    }
}

#[test]
fn registers_in_kvm_run_page_are_those_that_vmm_asked_for() {
    let Some(plain) = plain("shared-registers") else {
        return;
    };
    for policy in [ALLOWS, ANSWERS, LOGS] {
        assert_eq!(
            awkward(policy, "shared-registers").as_ref(),
            Some(&plain),
            "{policy}"
        );
    }
    let denied = plain.replace('.', "!");
    assert_eq!(awkward(DENIES, "shared-registers"), Some(denied));
}

/// The action `kill` ends the VMM even if the VMM is the first process of a PID namespace, which ignores a
/// SIGKILL from itself.
#[test]
fn action_kill_ends_vmm_that_is_first_process_of_pid_namespace() {
    let Some(lab) = Lab::with_kvm(KILLS) else {
        return;
    };
    let unshare = ["--user", "--map-root-user", "--pid", "--fork"];
    if !Command::new("unshare")
        .args(unshare)
        .arg("true")
        .status()
        .is_ok_and(|status| status.success())
    {
        host::say("SKIPPED: unshare(1) makes no PID namespace here");
        return;
    }
    let strict = lab.build("strict.c", &[]);
    let exec = lab.exec(&["--quiet"]);
    let mut command = Command::new("unshare");
    command
        .args(unshare)
        .arg(exec.get_program())
        .args(exec.get_args())
        .arg(strict);
    command.current_dir(lab.folder.path()).envs(
        exec.get_envs()
            .filter_map(|(key, value)| Some((key, value?))),
    );
    let ran = ran(&mut command);
    assert_eq!((&*ran.out, ran.status), ("", 137), "{}", ran.err);
    assert!(
        ran.err.contains("the policy has the action kill for the"),
        "{}",
        ran.err
    );
}
