//! Tests on a real KVM. On a machine without KVM the tests print that they are skipped; with
//! `MSRGATE_REQUIRE=kvm` they fail there.

mod doctor;
mod install;
mod supported;
