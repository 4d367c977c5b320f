//! Tests of the warnings of `check`: which answer they give, and those about a host.

use std::fs;
use std::process::{Command, Output};

use msrgate_testing::host::host;
use serde_json::Value;

fn msrgate(arguments: &[&str]) -> Output {
    let mut msrgate = Command::new(env!("CARGO_BIN_EXE_msrgate"));
    msrgate.args(arguments).output().expect("msrgate runs")
}

/// Returns the JSON of `check` about this text of a policy, and the exit code.
fn checked(text: &str, more: &[&str]) -> (Value, Option<i32>) {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("p.toml");
    fs::write(&path, text).expect("written");
    let path = path.to_str().expect("a path");
    let output = msrgate(&[&["check", path, "--format", "json"], more].concat());
    let json = serde_json::from_slice(&output.stdout).expect("JSON");
    (json, output.status.code())
}

const PINS: &str = "policy = 1\ndefault = 'allow'\naccept = [ACCEPTED'vmload', 'state-not-migrated']\n[msrs]\nIA32_LSTAR = { read = 'allow', write = 'pin' }\n";

#[test]
fn warning_is_error_with_deny_warnings_unless_policy_accepts_it() {
    let none = ["--host", "none"];
    let denied = ["--host", "none", "--deny-warnings"];
    let warned = PINS.replace("ACCEPTED", "");
    let accepting = PINS.replace("ACCEPTED", "'pin-kexec', ");
    for (text, more, severity, code) in [
        (&warned, &none[..], Some("warning"), 0),
        (&warned, &denied, Some("error"), 1),
        (&accepting, &none, None, 0),
        (&accepting, &denied, None, 0),
    ] {
        let (json, status) = checked(text, more);
        assert_eq!(status, Some(code), "{json}");
        assert_eq!(json["ok"], code == 0, "{json}");
        let warnings = json["warnings"].as_array().expect("warnings");
        let severities: Vec<_> = warnings.iter().map(|one| &one["severity"]).collect();
        assert_eq!(severities, Vec::from_iter(severity), "{json}");
        for warning in warnings {
            assert_eq!(warning["accept"], "pin-kexec", "{json}");
        }
    }
}

/// The registers that KVM refuses to let a guest write are not listed.
#[test]
fn not_saved_names_only_registers_that_guest_can_change() {
    if host().is_none() {
        return;
    }
    let text = fs::read_to_string("tests/policies/not-saved-of-read-only.toml").expect("a policy");
    let (json, status) = checked(&text, &["--host", "kvm"]);
    assert_eq!(status, Some(0), "{json}");
    let warnings = json["warnings"].as_array().expect("warnings");
    let details: Vec<_> = warnings
        .iter()
        .filter(|one| one["code"] == "not-saved")
        .map(|one| &one["details"])
        .collect();
    assert_eq!(
        details,
        [&serde_json::json!([
            "0x200..=0x20f from IA32_MTRR_PHYSBASE0"
        ])]
    );
}

/// A sandbox refuses most registers that CPUID offers. One warning lists them, and says what the guest gets.
#[test]
fn cpuid_refused_is_one_warning_that_says_what_guest_gets() {
    if host().is_none() {
        return;
    }
    let output = msrgate(&["check", "sandbox", "--host", "kvm"]);
    let text = String::from_utf8(output.stdout).expect("text");
    let lines: Vec<_> = text
        .lines()
        .filter(|line| line.contains("[cpuid-refused]"))
        .collect();
    assert_eq!(lines.len(), 1, "{text}");
    assert!(lines[0].contains(": #GP for rw "), "{text}");
    assert!(!lines[0].contains("the end of the VM"), "{text}");
    let killing =
        "policy = 1\ndefault = 'allow'\n[msrs]\nIA32_PAT = { read = 'kill', write = 'kill' }\n";
    let (json, _) = checked(killing, &["--host", "kvm"]);
    let message = json["warnings"][0]["message"].as_str().expect("a message");
    assert!(
        message.ends_with(": the end of the VM, or of the call that it is serving, for rw 0x277"),
        "{json}"
    );
}
