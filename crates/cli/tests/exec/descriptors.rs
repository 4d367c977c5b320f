//! Tests of VMMs that do unusual things with the descriptors of VMs and vCPUs: dup2(2), low limits,
//! exchanged numbers.

use crate::lab::{ANSWERS, DENIES, LOGS, Lab, Ran, ran};

/// Runs the test VMM `descriptors` with the argument `what` under a policy, and returns its output and exit status.
fn descriptors(policy: &str, what: &str) -> Option<Ran> {
    let lab = Lab::with_kvm(policy)?;
    let vmm = lab.build("descriptors.c", &[]);
    let ran = ran(lab.exec(&["--quiet"]).arg(vmm).arg(what));
    lab.assert_no_page_is_left();
    Some(ran)
}

/// Runs the test VMM `descriptors` with the argument `what` under a policy, and returns its output. Asserts
/// that the VMM ended with status 0 and without a message.
fn shown(policy: &str, what: &str) -> Option<String> {
    let ran = descriptors(policy, what)?;
    assert_eq!((&*ran.err, ran.status), ("", 0), "{what}\n{}", ran.out);
    Some(ran.out)
}

/// The limit of descriptors leaves just as many numbers as the VMM and the library need together. The
/// library takes the highest numbers, so that the VMM gets the same numbers for each of ten VMs that it
/// makes one after another.
#[test]
fn vms_are_made_and_guarded_as_long_as_limit_leaves_free_descriptor_numbers() {
    let reboots = "4 5 !\nleft: 0\n".repeat(10);
    let Some(low) = shown(DENIES, "low-limit") else {
        return;
    };
    assert_eq!(low, reboots);
    let lowered = shown(DENIES, "lowered-limit");
    assert_eq!(lowered, Some(format!("!\n!\nleft: 0\n{reboots}")));
}

/// The library recognises descriptors of VMs and vCPUs on a kernel that compares descriptors by kcmp(2)
/// only, as before Linux 6.10.
#[test]
fn library_recognises_descriptors_on_kernel_that_compares_them_only_by_kcmp() {
    for what in ["exchanged", "unseen", "far", "exchanged-vms"] {
        let Some(new) = shown(DENIES, what) else {
            return;
        };
        let lab = Lab::with_kvm(DENIES).unwrap();
        let vmm = lab.build("descriptors.c", &[]);
        let mut exec = lab.exec(&["--quiet"]);
        let ran = ran(exec.arg(vmm).arg(what).arg("old-kernel"));
        assert_eq!((ran.out, &*ran.err, ran.status), (new, "", 0), "{what}");
    }
}

#[test]
fn vcpu_is_refused_if_no_descriptor_number_is_free_for_library() {
    let Some(ran) = descriptors(DENIES, "too-low-limit") else {
        return;
    };
    assert_eq!(ran.out, "VM 4, vCPU -1, Too many open files\n");
    assert_eq!(ran.err.lines().count(), 1, "{}", ran.err);
    assert!(ran.err.contains("no descriptor is left"), "{}", ran.err);
}

#[test]
fn library_releases_vm_closed_by_dup2_or_close_range_without_another_kvm_request() {
    let Some(shown) = shown(DENIES, "unseen") else {
        return;
    };
    assert_eq!(shown, "!\n!\n!\n!\nleft: 0\n");
}

/// The VMM gives a vCPU's descriptor number to another vCPU by dup2(2). The vCPU that got the number is
/// guarded by its own gate.
#[test]
fn vcpu_that_gets_descriptor_number_of_another_vcpu_is_guarded_by_its_own_gate() {
    for (policy, result) in [(DENIES, "!\n"), (ANSWERS, ".\n"), (LOGS, ".\n")] {
        let Some(shown) = shown(policy, "exchanged") else {
            return;
        };
        assert_eq!(shown, result.repeat(9), "{policy}");
    }
}

/// The VMM exchanges the descriptor numbers of vCPUs, of one VM and of two VMs, just before the vCPUs run.
/// Each vCPU is guarded by its own gate, and the VMM gets no exit.
#[test]
fn vcpus_with_exchanged_descriptor_numbers_are_each_guarded_by_their_own_gate() {
    for (policy, result) in [(DENIES, "!\n"), (ANSWERS, ".\n"), (LOGS, ".\n")] {
        let Some(swapped) = shown(policy, "swapped") else {
            return;
        };
        let expected = result.repeat(21) + "left: 0\n";
        assert_eq!(swapped, expected, "{policy}");
        let running = shown(policy, "swapped-while-running");
        assert_eq!(running, Some(result.repeat(15)), "{policy}");
    }
}

#[test]
fn vm_and_vcpu_kept_only_by_very_high_descriptor_numbers_are_guarded() {
    let Some(shown) = shown(DENIES, "far") else {
        return;
    };
    assert_eq!(shown, "!\n!\n");
}

/// The VMM puts other files on the library's own descriptors, by which the library recognises vCPUs. The
/// library ends such a VMM.
#[test]
fn vmm_that_replaces_descriptors_of_library_by_other_files_is_ended() {
    let Some(ran) = descriptors(DENIES, "stolen") else {
        return;
    };
    assert_eq!(ran.out.trim_matches(['!', '\n']), "");
    assert_eq!(ran.status, 128 + 9);
    assert!(
        ran.err.contains("a vCPU has run that has no gate"),
        "{}",
        ran.err
    );
}

#[test]
fn vm_that_gets_descriptor_number_of_another_vm_keeps_its_own_filter() {
    let Some(shown) = shown(DENIES, "exchanged-vms") else {
        return;
    };
    let expected = "filter: 0 \nmask 4: 0 \n[exit 10 4]7.\n[exit 10 4]7.\n.\nfilter: 0 \n.\n!\n";
    assert_eq!(shown, expected);
}

#[test]
fn vcpu_that_is_hot_added_unplugged_and_plugged_again_is_guarded() {
    for (policy, result) in [(DENIES, "!\n"), (ANSWERS, ".\n"), (LOGS, ".\n")] {
        let Some(shown) = shown(policy, "parked") else {
            return;
        };
        let expected = result.repeat(6) + "left: 0\n";
        assert_eq!(shown, expected, "{policy}");
    }
}

#[test]
fn vm_closed_while_its_vcpu_runs_leaves_no_descriptor_open_in_library() {
    let Some(shown) = shown(ANSWERS, "closed-while-running") else {
        return;
    };
    assert_eq!(shown, "left: 0\n".repeat(5));
}

#[test]
fn hundred_closed_vms_leave_no_descriptor_thread_mapping_or_memory() {
    for policy in [DENIES, LOGS] {
        let Some(shown) = shown(policy, "nothing-is-left") else {
            return;
        };
        let last = shown.trim_start_matches(['!', '.', '\n']);
        assert_eq!(last, "more files 0, more threads 0, more mappings 0\n");
    }
}
