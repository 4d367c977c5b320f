//! Small VMMs that do what some VMMs do, on purpose.

use crate::lab::{ALLOWS, ANSWERS, DENIES, KILLS, LOGS, Lab, ran};

/// A VMM whose threads may call next to nothing.
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

#[test]
fn audit_of_a_vmm_under_seccomp_lets_all_through() {
    let Some(lab) = Lab::with_kvm(DENIES) else {
        return;
    };
    let strict = lab.build("strict.c", &[]);
    let ran = ran(lab.exec(&["--audit"]).arg(strict));
    assert_eq!((&*ran.out, ran.status), (".\n", 0), "{}", ran.err);
    assert!(
        ran.err.contains("would have refused 1 access\n"),
        "{}",
        ran.err
    );
}
