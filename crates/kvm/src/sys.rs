//! Calls into the kernel: `ioctl`s of KVM, memory, signals, and a filter as user space may pass it.

pub(crate) mod calls;
pub(crate) mod memory;
pub(crate) mod raw;
pub(crate) mod signals;

pub use raw::{RawBitmap, RawFilter, RawRange, raw_filter, set_filter_raw};
