//! Tests of `msrgate exec` with VMMs that are dynamically linked against musl and load the build of
//! msrgate's library for musl.

use std::process::Command;

use crate::lab::{ALLOWS, ANSWERS, DENIES, KILLS, LOGS, Lab, library, library_for_musl, ran};

/// Returns the output and the exit status of a VMM that is linked against musl, under a policy.
fn guarded(policy: &str, vmm: &str, what: &[&str]) -> Option<(String, i32)> {
    let preload = library_for_musl()?;
    let lab = Lab::with_kvm(policy)?;
    let vmm = lab.build_for_musl(vmm);
    let mut command = lab.exec(&["--quiet"]);
    let ran = ran(command.env("MSRGATE_PRELOAD", preload).arg(vmm).args(what));
    lab.assert_no_page_is_left();
    Some((ran.out + &ran.err, ran.status))
}

#[test]
fn policy_takes_effect_in_musl_vmm_whose_seccomp_filter_allows_few_calls() {
    for (policy, shown) in [
        (ALLOWS, ".\n"),
        (DENIES, "!\n"),
        (ANSWERS, ".\n"),
        (LOGS, ".\n"),
    ] {
        let Some(ran) = guarded(policy, "strict.c", &[]) else {
            return;
        };
        assert_eq!(ran, (shown.to_owned(), 0), "{policy}");
    }
    let (said, status) = guarded(KILLS, "strict.c", &[]).unwrap();
    assert!(
        said.contains("the policy has the action kill for the read"),
        "{said}"
    );
    assert_eq!(status, 128 + 9);
}

#[test]
fn musl_vmms_that_kick_fork_and_exchange_descriptors_are_guarded() {
    let reboots = "!\n".repeat(10) + "same numbers 10 of 10, more files 0, more threads 0\n";
    for (policy, vmm, what, shown) in [
        (DENIES, "awkward.c", "reboots", &*reboots),
        (
            ANSWERS,
            "awkward.c",
            "kicks",
            "all kicks seen, no exception\n",
        ),
        (ANSWERS, "awkward.c", "uncaught", "0, exit 2\n"),
        (DENIES, "awkward.c", "children", "child !\nparent !\n"),
        (LOGS, "endings.c", "main-ends", ".\n.\nat exit\n"),
        (DENIES, "descriptors.c", "exchanged", &*"!\n".repeat(9)),
    ] {
        let Some(ran) = guarded(policy, vmm, &[what]) else {
            return;
        };
        assert_eq!(ran, (shown.to_owned(), 0), "{what}");
    }
}

/// `exec` refuses a library of msrgate that was built for another C library than the VMM's, and says which
/// library to name.
#[test]
fn exec_refuses_preload_library_built_for_another_c_library_than_vmm() {
    let Some(for_musl) = library_for_musl() else {
        return;
    };
    let lab = Lab::new(ALLOWS);
    let vmm_of_musl = lab.build_for_musl("strict.c");
    let vmm_of_glibc = lab.build("loop.c", &[]);
    for (preload, vmm, why) in [
        (
            library(),
            vmm_of_musl,
            "for programs of glibc, and the VMM is one of musl: name libmsrgate_preload.musl.so by",
        ),
        (
            for_musl,
            vmm_of_glibc,
            "for programs of musl, and the VMM is one of glibc: name libmsrgate_preload.so by",
        ),
    ] {
        let ran = ran(lab.exec(&[]).env("MSRGATE_PRELOAD", preload).arg(vmm));
        assert_eq!((&*ran.out, ran.status), ("", 125));
        assert_eq!(ran.err.lines().count(), 1, "{}", ran.err);
        assert!(ran.err.contains(why), "{}", ran.err);
    }
}

#[test]
fn exec_chooses_preload_library_beside_command_by_c_library_of_vmm() {
    if library_for_musl().is_none() {
        return;
    }
    let Some(lab) = Lab::with_kvm(DENIES) else {
        return;
    };
    for vmm in [lab.build_for_musl("strict.c"), lab.build("strict.c", &[])] {
        let mut command = lab.exec(&["--quiet"]);
        let ran = ran(command.env_remove("MSRGATE_PRELOAD").arg(vmm));
        assert_eq!((&*ran.out, &*ran.err, ran.status), ("!\n", "", 0));
    }
}

/// The library for musl exports `ioctl` and `close`, and depends only on `libc.so`, the name by which every
/// musl is found.
#[test]
fn preload_library_for_musl_exports_ioctl_and_close_and_needs_only_musl() {
    let Some(library) = library_for_musl() else {
        return;
    };
    let shown = |program: &str, options: &[&str]| {
        let output = Command::new(program).args(options).arg(library).output();
        String::from_utf8(output.expect("binutils are there").stdout).unwrap()
    };
    let symbols = shown("nm", &["-D", "--format=posix"]);
    let exported: Vec<_> = symbols
        .lines()
        .filter(|line| line.contains(" T "))
        .filter_map(|line| line.split(' ').next())
        .collect();
    assert_eq!(exported, ["close", "ioctl"]);
    assert!(!symbols.contains('@'), "{symbols}");
    let dynamic = shown("readelf", &["-d"]);
    let needed: Vec<_> = dynamic
        .lines()
        .filter(|line| line.contains("(NEEDED)"))
        .collect();
    assert_eq!(needed.len(), 1, "{dynamic}");
    assert!(needed[0].contains("[libc.so]"), "{dynamic}");
}
