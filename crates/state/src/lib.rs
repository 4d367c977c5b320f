//! The state page of a run: one file that `msrgate exec` makes before it starts a VMM, that the library in the VMM
//! maps, and that whoever wants to know what happened reads.
//!
//! It holds what the library needs to know, the compiled program among it, and afterwards what the library saw: which
//! accesses were refused or answered, how often, first by which vCPU and when; the VMs of the run; and events. All of it
//! stands in 64-bit words in the byte order of x86. The library writes them by atomic operations on a shared mapping, so
//! that they are in the file whichever way the VMM ends, `SIGKILL` included.
//!
//! # Trust
//!
//! The VMM's process can write every byte, and its guest may own it. [`Snapshot`] therefore takes the file as hostile
//! input: it reads a copy that somebody has made by pread(2), never a mapping, and bounds all that it finds there. What
//! it says is what the VMM's process wants to be said.
//!
//! # Terminology
//!
//! - *run*: one call of `msrgate exec`. It may start several processes with VMs, one after another or at once.
//! - *place*: one of the fixed number of entries for kinds of accesses. A kind is an MSR, a direction, a disposition and a
//!   reason.
#![forbid(unsafe_code)]

mod key;
mod layout;
mod page;
mod snapshot;

pub use key::Kind;
pub use layout::{BUILD, BadPage, Layout, MAX_PROGRAM, NewRun};
pub use page::{Page, Seen};
pub use snapshot::{Event, Followed, Recorded, Snapshot, VmRecord};
