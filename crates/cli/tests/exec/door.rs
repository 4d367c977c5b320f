//! VMMs that do not load the library, or go round it: the kernel refuses them.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use crate::lab::{ALLOWS, DENIES, Lab, ran};

const SENTENCE: &str = "asked KVM for a VM past msrgate's library, and was refused";

#[test]
fn vm_past_the_library_is_refused_and_by_the_library_made() {
    let Some(lab) = Lab::with_kvm(ALLOWS) else {
        return;
    };
    let past = lab.build("past.c", &[]);
    let ran = ran(lab.exec(&["--quiet"]).arg(past));
    let expected = "int 0x80: -1\nx32: -1\nsyscall: -1\nhigh bits: -1\nioctl: a VM\nfilter: -1\nfilter of 32 bits: -1\nanother request: 1\n";
    assert_eq!((&*ran.out, ran.status), (expected, 0));
    // Once, however often it tries.
    assert_eq!(ran.err.matches(SENTENCE).count(), 1, "{}", ran.err);
    assert_eq!(
        ran.err
            .matches("asked KVM to replace a VM's MSR filter past")
            .count(),
        1,
        "{}",
        ran.err
    );
}

#[test]
fn cleared_ld_preload_is_refused() {
    let Some(lab) = Lab::with_kvm(ALLOWS) else {
        return;
    };
    let strict = lab.build("strict.c", &[]);
    let ran = ran(lab.exec(&[]).args(["env", "-u", "LD_PRELOAD"]).arg(strict));
    assert_eq!(ran.status, 1);
    assert!(ran.err.contains("Operation not permitted"), "{}", ran.err);
    assert!(
        ran.err.contains(SENTENCE) && ran.err.contains("(strict)"),
        "{}",
        ran.err
    );
}

/// That it is static is seen only where it is the VMM itself.
#[test]
fn static_vmm_behind_a_script_is_refused() {
    let Some(lab) = Lab::with_kvm(ALLOWS) else {
        return;
    };
    lab.build("strict.c", &["-static"]);
    let script = lab.path("start");
    fs::write(&script, "#!/bin/sh\nexec ./strict\n").unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    let ran = ran(lab.exec(&[]).arg(script));
    assert_eq!(ran.status, 1);
    assert!(ran.err.contains(SENTENCE), "{}", ran.err);
}

#[test]
fn door_that_is_left_open_lets_a_vmm_without_the_library_pass() {
    let Some(lab) = Lab::with_kvm(DENIES) else {
        return;
    };
    let strict = lab.build("strict.c", &[]);
    let ran = ran(lab
        .exec(&["--fail-open"])
        .args(["env", "-u", "LD_PRELOAD"])
        .arg(strict));
    assert_eq!((&*ran.out, ran.status), (".\n", 0));
    assert!(
        ran.err
            .contains("--fail-open: a VMM that does not load the library"),
        "{}",
        ran.err
    );
}
