//! The machine that the tests run on.

use std::io::Write;

use msrgate_kvm::HostCaps;

/// This host, or `None` with a word about why the test is skipped.
///
/// # Panics
/// There is no usable KVM, and `MSRGATE_REQUIRE` says that there must be.
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

/// A line on stderr that is seen even where the test passes, whose prints are kept back.
pub fn say(line: &str) {
    // At once, so that no other test's line gets into it. A closed stderr is no reason to fail.
    let _ = std::io::stderr().write_all(format!("{line}\n").as_bytes());
}
