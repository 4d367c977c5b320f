//! Tests of VMMs that do unusual things with descriptors.

use crate::lab::{ANSWERS, DENIES, LOGS, Lab, Ran, ran};

/// Returns the result of `descriptors WHAT` under a policy.
fn descriptors(policy: &str, what: &str) -> Option<Ran> {
    let lab = Lab::with_kvm(policy)?;
    let vmm = lab.build("descriptors.c", &[]);
    let ran = ran(lab.exec(&["--quiet"]).arg(vmm).arg(what));
    lab.assert_no_page_is_left();
    Some(ran)
}

/// Returns the output of `descriptors WHAT`, if that ended well.
fn shown(policy: &str, what: &str) -> Option<String> {
    let ran = descriptors(policy, what)?;
    assert_eq!((&*ran.err, ran.status), ("", 0), "{what}\n{}", ran.out);
    Some(ran.out)
}

/// The limit leaves just as many numbers as the VMM and the library need together. The library takes the highest
/// ones, so that the VMM gets the same ones at each reboot.
#[test]
fn vms_are_made_while_a_number_is_free() {
    let reboots = "4 5 !\nleft: 0\n".repeat(10);
    let Some(low) = shown(DENIES, "low-limit") else {
        return;
    };
    assert_eq!(low, reboots);
    let lowered = shown(DENIES, "lowered-limit");
    assert_eq!(lowered, Some(format!("!\n!\nleft: 0\n{reboots}")));
}

/// Before Linux 6.10 the kernel compares descriptors by kcmp(2) only.
#[test]
fn descriptors_are_recognised_on_an_older_kernel() {
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
fn vcpu_without_a_number_for_the_library_is_refused() {
    let Some(ran) = descriptors(DENIES, "too-low-limit") else {
        return;
    };
    assert_eq!(ran.out, "VM 4, vCPU -1, Operation not permitted\n");
    assert_eq!(ran.err.lines().count(), 1, "{}", ran.err);
    assert!(ran.err.contains("no descriptor is left"), "{}", ran.err);
}

#[test]
fn descriptor_closed_without_close_is_let_go_of_without_a_further_request() {
    let Some(shown) = shown(DENIES, "unseen") else {
        return;
    };
    assert_eq!(shown, "!\n!\n!\n!\nleft: 0\n");
}

/// The VMM answers exits of MSRs with a value: an exit of the wrong vCPU would reach it.
#[test]
fn vcpu_on_the_number_of_another_is_guarded_as_itself() {
    for (policy, result) in [(DENIES, "!\n"), (ANSWERS, ".\n"), (LOGS, ".\n")] {
        let Some(shown) = shown(policy, "exchanged") else {
            return;
        };
        assert_eq!(shown, result.repeat(9), "{policy}");
    }
}

/// The numbers of vCPUs of one VM, and of two, are exchanged just before the vCPUs run. Each is guarded by its own
/// gate: the VMM, which would answer an exit with 7, gets none.
#[test]
fn vcpus_with_exchanged_numbers_are_guarded_as_themselves() {
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
fn vm_kept_by_numbers_far_from_all_others_is_guarded() {
    let Some(shown) = shown(DENIES, "far") else {
        return;
    };
    assert_eq!(shown, "!\n!\n");
}

/// The library knows vCPUs by descriptors of its own. Without them it cannot tell which gate a vCPU has.
#[test]
fn vmm_that_replaces_descriptors_of_the_library_is_ended() {
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
fn vm_on_the_number_of_another_keeps_its_own_filter() {
    let Some(shown) = shown(DENIES, "exchanged-vms") else {
        return;
    };
    let expected = "filter: 0 \nmask 4: 0 \n[exit 10 4]7.\n[exit 10 4]7.\n.\nfilter: 0 \n.\n!\n";
    assert_eq!(shown, expected);
}

#[test]
fn vcpu_that_is_added_late_parked_and_taken_again_is_guarded() {
    for (policy, result) in [(DENIES, "!\n"), (ANSWERS, ".\n"), (LOGS, ".\n")] {
        let Some(shown) = shown(policy, "parked") else {
            return;
        };
        let expected = result.repeat(6) + "left: 0\n";
        assert_eq!(shown, expected, "{policy}");
    }
}

#[test]
fn vm_closed_while_its_vcpu_runs_leaves_nothing() {
    let Some(shown) = shown(ANSWERS, "closed-while-running") else {
        return;
    };
    assert_eq!(shown, "left: 0\n".repeat(5));
}

#[test]
fn closed_vms_leave_no_descriptor_thread_mapping_or_memory() {
    for policy in [DENIES, LOGS] {
        let Some(shown) = shown(policy, "nothing-is-left") else {
            return;
        };
        let last = shown.trim_start_matches(['!', '.', '\n']);
        assert_eq!(last, "more files 0, more threads 0, more mappings 0\n");
    }
}
