//! The VM and its vCPUs, statement by statement of `docs/kvm-semantics.md`: each test is named
//! after what it holds, and runs on every revision that has it. No device is needed.

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
