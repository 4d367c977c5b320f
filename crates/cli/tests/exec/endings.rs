//! Tests of VMMs whose threads and processes begin and end in unusual ways.

use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};

use crate::lab::{ALLOWS, DENIES, LOGS, Lab, Ran, ran};

/// Runs the test VMM `endings` with the argument `what` under a policy, and returns its output and exit status.
fn endings(policy: &str, what: &str) -> Option<Ran> {
    let lab = Lab::with_kvm(policy)?;
    let vmm = lab.build("endings.c", &[]);
    let ran = ran(lab.exec(&["--quiet"]).arg(vmm).arg(what));
    lab.assert_no_page_is_left();
    Some(ran)
}

/// The main thread of the VMM ends by `pthread_exit`. The process still ends with status 0 when the last of
/// the VMM's threads ends, as without `exec`, although msrgate's helper thread goes on.
#[test]
fn process_whose_main_thread_called_pthread_exit_ends_with_last_thread_of_vmm() {
    for what in ["main-ends", "main-ends-first", "child-ends"] {
        let Some(lab) = Lab::with_kvm(ALLOWS) else {
            return;
        };
        let plain = ran(Command::new(lab.build("endings.c", &[])).arg(what));
        for policy in [ALLOWS, LOGS] {
            let Some(guarded) = endings(policy, what) else {
                return;
            };
            assert_eq!(
                (guarded.out, guarded.err, guarded.status),
                (plain.out.clone(), plain.err.clone(), 0),
                "{what}"
            );
        }
    }
}

#[test]
fn sigterm_ends_vmm_whose_main_thread_called_pthread_exit() {
    let Some(lab) = Lab::with_kvm(DENIES) else {
        return;
    };
    let vmm = lab.build("endings.c", &[]);
    let mut command = lab.exec(&["--quiet"]);
    command.arg(vmm).arg("others-go-on").stdout(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    // The second line is printed well after the end of the main thread.
    for _ in 0..2 {
        assert_eq!(lines.next().unwrap().unwrap(), "!");
    }
    let pid = child.id().to_string();
    let sent = Command::new("kill").args(["-TERM", &pid]).status();
    assert!(sent.unwrap().success());
    // The end of the output comes first: a zombie's threads have closed it.
    assert!(lines.all(|line| line.unwrap() == "!"));
    let output = child.wait_with_output().unwrap();
    assert_eq!(Ran::from(output).status, 128 + 15);
    lab.assert_no_page_is_left();
}

#[test]
fn child_forked_while_other_threads_make_vms_can_make_guarded_vm() {
    for policy in [DENIES, LOGS] {
        let Some(ran) = endings(policy, "forks-while-making") else {
            return;
        };
        let result = (&*ran.out, &*ran.err, ran.status);
        assert_eq!(result, ("good children: 200\n", "", 0));
    }
}

/// The VMM sets a seccomp filter for all its threads, which forbids the library's helper thread a system
/// call. The VMM then gets no VM, or the process ends: no guest runs without the policy.
#[test]
fn seccomp_filter_that_stops_helper_thread_leaves_no_guest_without_policy() {
    let refused = "msrgate: the VM or vCPU cannot be guarded: ";
    let Some(ran) = endings(DENIES, "forbidden-by-error") else {
        return;
    };
    assert_eq!(ran.out, "VM: Operation not permitted\n");
    assert_eq!(
        ran.err,
        format!("{refused}Permission denied (os error 13)\n")
    );

    let ran = endings(DENIES, "forbidden-by-end-of-thread").unwrap();
    assert_eq!(ran.out, "VM: Operation not permitted\n");
    let why = "msrgate's helper thread has ended: a seccomp filter";
    assert!(
        ran.err.starts_with(&format!("{refused}{why}")),
        "{}",
        ran.err
    );

    // The kernel ends the process without a sentence: the library's thread catches no signal.
    let ran = endings(DENIES, "forbidden-by-trap").unwrap();
    assert_eq!((&*ran.out, &*ran.err, ran.status), ("", "", 128 + 31));

    // A VM that was made before the filter stays guarded.
    let ran = endings(DENIES, "forbidden-before-run").unwrap();
    assert_eq!((&*ran.out, ran.status), ("!\n", 1));
    assert!(
        ran.err.starts_with(&format!("{refused}{why}")),
        "{}",
        ran.err
    );

    // Nobody opens the filter any more for an access that is to be logged: the guest would wait for ever.
    let ran = endings(LOGS, "forbidden-before-first-access").unwrap();
    assert_eq!((&*ran.out, ran.status), (".\n", 128 + 9));
    assert!(
        ran.err.starts_with(&format!("msrgate: {why}")),
        "{}",
        ran.err
    );
}

/// The kernel refuses a new user namespace to a process with several threads. After the first KVM request
/// the library's helper thread is a second thread.
#[test]
fn unshare_of_user_namespace_fails_with_einval_after_first_kvm_request() {
    let Some(ran) = endings(ALLOWS, "unshares") else {
        return;
    };
    assert_eq!((&*ran.out, ran.status), ("unshare: Invalid argument\n", 0));
}
