//! The state page of a run: a file that `msrgate exec` makes before it starts a VMM, that the library in the
//! VMM maps, and that the command reads to learn what happened.
//!
//! The command writes what the library needs, such as the compiled program. The library then records what it
//! saw: the accesses that were refused or answered, with their counts and the vCPU and time of the first
//! one; the VMs of the run; and events. All data are 64-bit words in little-endian byte order. The library
//! writes them with atomic operations to a shared mapping, so that the data are in the file even if the VMM
//! is ended by `SIGKILL`.
//!
//! # Trust
//!
//! The VMM's process can write every byte, and a hostile guest may control that process. [`Snapshot`]
//! therefore treats the file as hostile input: it takes bytes that the caller has read by pread(2), never a
//! mapping, and bounds every number that it finds. A hostile VMM decides what the page says.
//!
//! # Terminology
//!
//! - *run*: one call of `msrgate exec`. It may start several processes with VMs, one after another or at the
//!   same time.
//! - *kind*: an MSR, a direction, a disposition and the reason of the exit.
//! - *ring*: the entries for the events of a VM that are yet to be read. The library overwrites none of them: the reader
//!   writes into the page how many events it has read. The reader itself uses its own count, as a hostile VMM may change
//!   the one in the page.
//! - *place*: an entry of the page for the accesses of one kind. The number of places is fixed.
#![forbid(unsafe_code)]

mod descriptors;
mod key;
mod layout;
mod page;
mod snapshot;

pub use descriptors::lowest_library_fd;
pub use key::Kind;
pub use layout::{BUILD, BadPage, Layout, MAGIC, MAX_PROGRAM, NewRun};
pub use page::{Limited, Page, Seen};
pub use snapshot::{Cursor, Event, Followed, Recorded, Snapshot, Unfinished, VmRecord};
