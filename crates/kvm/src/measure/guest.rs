//! The built-in guest: a few dozen bytes of machine code in long mode that run a script of MSR accesses,
//! handle their own #GP, and report through memory.
//!
//! One `KVM_RUN` runs thousands of accesses: the guest walks a list of [slots](slot), each with the values
//! to load and a place for the result, and exits by OUT at the end.

mod code;
mod layout;
mod machine;
mod run;
mod slot;
mod watchdog;

#[cfg(all(test, not(loom)))]
pub(crate) use layout::VcpuNumber;
pub(crate) use machine::{Apic, Guest, RawExit, Stop, called};
pub use run::{GuestError, StepAt};
pub(crate) use run::{compare, went_through};
pub(crate) use slot::{Op, Operands, Report};
