//! A test of the crates that the library brings into a VMM.

use std::process::Command;

/// A VMM gets the gate and programs: no language, no JSON, no logging framework.
#[test]
fn library_links_neither_language_nor_json() {
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
