//! Tests of the hypervisor on QEMU's emulator, which executes SVM's instructions.

mod guest;
mod machine;
mod msrs;
mod refusals;
