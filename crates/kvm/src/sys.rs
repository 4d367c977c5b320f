//! System calls: KVM's `ioctl`s, memory, signals, and filters as user space passes them, mistakes included.

pub(crate) mod calls;
pub(crate) mod ioctl;
pub(crate) mod memory;
pub(crate) mod raw;
pub(crate) mod signals;

pub use ioctl::{IoctlFn, OwnCalls, make_calls_by};
pub use raw::{RawBitmap, RawFilter, RawRange, raw_filter, set_filter_raw};
pub use signals::while_blocked;
