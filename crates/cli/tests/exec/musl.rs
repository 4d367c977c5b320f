//! Tests of `msrgate exec` with VMMs that are dynamically linked against musl: they load msrgate's
//! library for musl.

use std::process::Command;

use crate::lab::{ALLOWS, ANSWERS, DENIES, KILLS, LOGS, Lab, library, library_for_musl, ran};

/// Returns the output of a small VMM of musl, and its exit status.
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
fn vmm_of_musl_under_seccomp_is_guarded() {
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
fn awkward_vmm_of_musl_is_guarded() {
    let reboots = "!\n".repeat(10) + "same numbers 10 of 10, more files 0, more threads 0\n";
    for (policy, vmm, what, shown) in [
        (DENIES, "awkward.c", "reboots", &*reboots),
        (
            ANSWERS,
            "awkward.c",
            "kicks",
            "seen 1000 of 1000, no exception\n",
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

/// The dynamic linker of each C library would print lines of its own, and go on or exit with 127.
#[test]
fn library_for_another_c_library_is_refused() {
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
fn library_beside_the_command_is_chosen_by_the_vmm() {
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

/// The library needs the VMM's C library by the name that each musl answers to, and nothing of glibc.
#[test]
fn library_for_musl_exports_two_functions_and_needs_only_musl() {
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
