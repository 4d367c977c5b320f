//! A test of the crates that msrgate's library brings into a VMM.

use std::process::Command;

/// The library links the crates of the gate and of compiled programs, but not those of the policy language,
/// of JSON or of a logging framework.
#[test]
fn preload_library_links_no_crate_of_policy_language_json_or_logging() {
    let mut tree = Command::new(env!("CARGO"));
    tree.args([
        "tree",
        "-p",
        "msrgate-preload",
        "--edges",
        "normal",
        "--prefix",
        "none",
        "--locked",
        "--offline",
    ]);
    let output = tree
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    assert!(output.status.success());
    let text = String::from_utf8(output.stdout).unwrap();
    let mut crates: Vec<_> = text
        .lines()
        .filter_map(|line| line.split(' ').next())
        .collect();
    crates.sort_unstable();
    crates.dedup();
    let expected = [
        "bitflags",
        "hmac-sha256",
        "kvm-bindings",
        "libc",
        "msrgate-filter",
        "msrgate-kvm",
        "msrgate-preload",
        "msrgate-program",
        "msrgate-state",
        "vmm-sys-util",
    ];
    assert_eq!(crates, expected);
}
