//! The system calls of this crate: KVM's `ioctl`s, memory and signals. The calls can pass any filter to KVM,
//! also one with mistakes.

pub(crate) mod calls;
pub(crate) mod ioctl;
pub(crate) mod memory;
pub(crate) mod raw;
pub(crate) mod signals;

pub use ioctl::{DuplicateFn, IoctlFn, OwnCalls, make_calls_by};
pub use raw::{RawBitmap, RawFilter, RawRange, raw_filter, set_filter_raw};
pub use signals::while_blocked;
