//! The machine on which the tests run, and the lines that tests print.

use std::io::Write;

use msrgate_kvm::HostCaps;

/// Probes this host; returns `None` and prints why the test is skipped if there is no usable KVM.
///
/// # Panics
/// Panics if there is no usable KVM and `MSRGATE_REQUIRE` contains `kvm`.
#[must_use]
pub fn host() -> Option<HostCaps> {
    match HostCaps::probe() {
        Ok(host) => Some(host),
        Err(error) => {
            let required = std::env::var("MSRGATE_REQUIRE").unwrap_or_default();
            let advice = error.advice();
            assert!(
                !required.split(',').any(|word| word == "kvm"),
                "MSRGATE_REQUIRE=kvm, but {error}. {advice}"
            );
            say(&format!("SKIPPED: {error}. {advice}"));
            None
        }
    }
}

/// Prints a line to stderr that is seen even if the test passes. The test harness would hide a line printed
/// with `eprintln`.
pub fn say(line: &str) {
    // One write, so that no other test's line is mixed into this one. A closed stderr does not fail the
    // test.
    let _ = std::io::stderr().write_all(format!("{line}\n").as_bytes());
}
