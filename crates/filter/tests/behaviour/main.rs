//! Tests of the VM and its vCPUs, for each statement of `docs/kvm-semantics.md`. A test is named
//! after its statement, and runs on every revision to which the statement applies. The tests need
//! no `/dev/kvm`.

mod caller;
mod machine;
mod s10_host;
mod s1_numbers;
mod s2_set;
mod s4_origins;
mod s5_completion;
mod s5_exits;
mod s6_requests;
mod s7_lifetime;
