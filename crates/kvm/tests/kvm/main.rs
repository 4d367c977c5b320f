//! Tests on a real KVM. Where there is none they are skipped, loudly; `MSRGATE_REQUIRE=kvm` makes
//! that a failure.

mod backend;
mod doctor;
mod install;

use msrgate_kvm::HostCaps;

/// This host, or `None` with a word about why the test is skipped.
///
/// # Panics
/// There is no usable KVM, and `MSRGATE_REQUIRE` says that there must be.
fn host() -> Option<HostCaps> {
    match HostCaps::probe() {
        Ok(host) => Some(host),
        Err(error) => {
            let required = std::env::var("MSRGATE_REQUIRE").unwrap_or_default();
            assert!(!required.split(',').any(|word| word == "kvm"), "{error}");
            eprintln!("SKIPPED: {error}. {}", error.advice());
            None
        }
    }
}
