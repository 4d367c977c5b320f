//! Tests on a real KVM. Where there is none they are skipped, loudly; `MSRGATE_REQUIRE=kvm` makes
//! that a failure.

mod doctor;
mod install;
mod supported;
