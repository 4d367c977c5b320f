//! The parts of msrgate's thin hypervisor that need no hardware, so that they run under test.
//!
//! The hypervisor starts before the guest, an unmodified kernel, and gives it the whole machine but the
//! hypervisor's own memory. Each RDMSR and WRMSR of the guest obeys a compiled policy: the processor's MSR
//! permission map, computed by `msrgate-filter`, lets allowed accesses through, and all other accesses leave
//! the guest and are answered by [`guard`]. `README.md` shows the path of one access.
//!
//! The binary of this package contains the rest: the entry from the boot loader, the world switch, physical
//! memory, ports, and the loop that handles exits.
//!
//! "APM" is the AMD64 Architecture Programmer's Manual; volume and section are given at each item.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod archive;
pub mod boot;
pub mod code;
pub mod cpuid;
pub mod events;
pub mod exit;
pub mod guard;
pub mod icr;
pub mod machine;
pub mod memory;
pub mod msrs;
pub mod vmcb;
pub mod walk;
