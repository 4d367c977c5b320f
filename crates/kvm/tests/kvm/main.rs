//! Tests on a real KVM. Without one they print that they are skipped; with `MSRGATE_REQUIRE=kvm` they
//! fail.

mod doctor;
mod install;
mod supported;
