//! A machine of QEMU's emulator on which msrgate's hypervisor guards a guest, and a guest that executes MSR
//! accesses. The emulator executes the instructions of AMD's SVM without help from the host's processor.

mod archive;
mod guest;
mod machine;

pub use archive::archive;
pub use guest::{END, Outcome, READS, Step, kernel, outcomes};
pub use machine::{Ended, Machine, Ran, is_qemu_there};
