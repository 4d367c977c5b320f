//! Tests of small VMMs that do on purpose what is difficult for `exec`.

use std::process::Command;

use msrgate_testing::host;

use crate::lab::{ALLOWS, ANSWERS, DENIES, KILLS, LOGS, Lab, ran};

/// The threads of this VMM may make hardly any system call.
#[test]
fn vmm_under_seccomp_is_guarded_by_calls_that_it_allows() {
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

/// The vCPU is in `KVM_RUN` when the VMM sets its first filter. An access that this filter still refused is executed
/// again once the filter is lifted, by `KVM_RUN` alone.
#[test]
fn own_filter_of_vmm_under_seccomp_is_lifted_by_calls_that_it_allows() {
    let Some(lab) = Lab::with_kvm(ALLOWS) else {
        return;
    };
    let strict = lab.build("strict.c", &[]);
    let ran = ran(lab.exec(&["--quiet"]).arg(strict).arg("own-filter"));
    assert_eq!((&*ran.out, &*ran.err, ran.status), ("\n", "", 0));
}

#[test]
fn audit_of_a_vmm_under_seccomp_lets_all_through() {
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

/// Returns the output of `awkward WHAT` under a policy.
fn awkward(policy: &str, what: &str) -> Option<String> {
    let lab = Lab::with_kvm(policy)?;
    let vmm = lab.build("awkward.c", &[]);
    let ran = ran(lab.exec(&["--quiet"]).arg(vmm).arg(what));
    assert_eq!((&*ran.err, ran.status), ("", 0), "{}", ran.out);
    lab.assert_no_page_is_left();
    Some(ran.out)
}

/// Returns the output of `awkward WHAT` without `exec`.
fn plain(what: &str) -> Option<String> {
    let lab = Lab::with_kvm(ALLOWS)?;
    let vmm = lab.build("awkward.c", &[]);
    Some(ran(Command::new(vmm).arg(what)).out)
}

/// The VMM compares the kernel's answers to right and wrong requests, the exits, and the guest's results.
#[test]
fn vmms_own_filter_and_mask_work_as_without_policy() {
    let Some(plain) = plain("own-filter") else {
        return;
    };
    assert!(plain.contains("[exit 8b 4]7"), "{plain}");
    assert_eq!(awkward(ALLOWS, "own-filter"), Some(plain));
}

/// A VMM's filter that denies by default denies 0xffffffff, too: the VMM or the guest gets that as without the
/// policy, and the policy is not blamed.
#[test]
fn last_msr_obeys_vmms_filter_where_policy_allows_it() {
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

/// The VMM gets no exit for an access that the policy denies, but gets one for an MSR that KVM does not
/// know.
#[test]
fn vmms_own_filter_opens_nothing_that_policy_denies() {
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

/// KVM's own refusals are the VMM's where its mask asks for them: of an unknown MSR, and of a bad value.
#[test]
fn refusals_of_kvm_exit_to_vmm_by_its_mask() {
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

/// The policy, too, says what becomes of unknown MSRs: it does where the VMM's mask does not ask for the exit.
#[test]
fn unknown_msr_is_the_vmms_first_and_then_the_policys() {
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

/// KVM has 16 ranges for the policy and the VMM's filter together.
#[test]
fn vmms_filter_that_does_not_fit_beside_policy_is_refused_in_one_sentence() {
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
fn encrypted_vm_is_refused_in_one_sentence() {
    let Some(lab) = Lab::with_kvm(ALLOWS) else {
        return;
    };
    let vmm = lab.build("awkward.c", &[]);
    let ran = ran(lab.exec(&["--quiet"]).arg(vmm).arg("encrypted"));
    assert_eq!(ran.out, "-1 Operation not permitted\n");
    assert_eq!(ran.err.lines().count(), 1, "{}", ran.err);
    assert!(ran.err.contains("run it without SEV"), "{}", ran.err);
}

/// All VMs share the helper thread, which opens their filters, too: two VMs have no more than one thread of the
/// library's, nor have twelve.
#[test]
fn vms_at_once_and_in_turn_have_one_thread_that_blocks_all_signals() {
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
fn reboots_on_the_same_numbers_are_guarded_and_leave_nothing() {
    let Some(shown) = awkward(DENIES, "reboots") else {
        return;
    };
    let expected = "!\n".repeat(10) + "same numbers 10 of 10, more files 0, more threads 0\n";
    assert_eq!(shown, expected);
}

#[test]
fn two_vms_at_once_and_duplicates_of_their_descriptors_are_guarded() {
    for what in ["two", "duplicated"] {
        let Some(shown) = awkward(DENIES, what) else {
            return;
        };
        assert_eq!(shown, "!\n!\n!\n", "{what}");
    }
}

#[test]
fn unseen_close_of_descriptors_leaks_nothing() {
    let Some(shown) = awkward(DENIES, "unseen") else {
        return;
    };
    assert_eq!(shown, "!\n!\n!\n!\nleft: 0\n");
}

#[test]
fn forked_child_and_parent_are_both_guarded() {
    let Some(shown) = awkward(DENIES, "children") else {
        return;
    };
    assert_eq!(shown, "child !\nparent !\n");
}

/// The guest does nothing but accesses that the policy answers.
#[test]
fn kick_by_a_signal_without_immediate_exit_is_seen() {
    let Some(shown) = awkward(ANSWERS, "kicks") else {
        return;
    };
    assert_eq!(shown, "seen 1000 of 1000, no exception\n");
}

#[test]
fn vmm_that_catches_no_signal_sees_no_interruption() {
    for policy in [ANSWERS, DENIES] {
        let Some(shown) = awkward(policy, "uncaught") else {
            return;
        };
        assert_eq!(shown, "0, exit 2\n");
    }
}

#[test]
fn vmm_finds_its_own_registers_in_kvm_run() {
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

/// The first process of a PID namespace ignores a SIGKILL that it sends to itself.
#[test]
fn first_process_of_a_namespace_is_killed_too() {
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
