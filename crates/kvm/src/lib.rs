//! MSR filters in a real KVM VM: probing the host, installing, a built-in guest that measures.
//!
//! [`HostCaps`] says what this host's KVM can do, or why not. [`install`] puts a
//! [`Filter`](msrgate_filter::Filter) into a VM. A [`Backend`] runs scripts of accesses under a
//! filter, mistakes of user space included, and shows what the guest and user space saw.
//!
//! Statements such as S3.2 are those of `docs/kvm-semantics.md`.
//!
//! A [`Gate`](gate::Gate) does all of it for a VMM: it installs a compiled policy, answers the exits,
//! replaces the policy while the VM runs, and tells what it saw.
//!
//! Without the feature `kvm-ioctls`, which is on unless switched off, there are [`HostCaps`], [`install`]
//! and the gate, all on file descriptors; no [`Backend`] and no doctor.
//!
//! What this crate does not do: it reads no policy's text and knows no register's name.

// A VMM's own types hold these, and derive it.
#![deny(missing_debug_implementations)]

#[cfg(feature = "kvm-ioctls")]
mod backend;
#[cfg(feature = "bench")]
#[doc(hidden)]
pub mod bench;
mod calls;
#[cfg(feature = "kvm-ioctls")]
mod doctor;
mod errno;
mod exit;
pub mod gate;
#[cfg(feature = "kvm-ioctls")]
mod guest;
mod host;
mod install;
#[cfg(feature = "kvm-ioctls")]
mod measure;
mod memory;
#[cfg(test)]
mod messages;
#[cfg(feature = "kvm-ioctls")]
mod model;
mod probe;
mod raw;
mod signals;
#[cfg(feature = "kvm-ioctls")]
mod supported;

#[cfg(feature = "kvm-ioctls")]
pub use backend::{
    Backend, BackendKind, Fault, GuestRegisters, KvmBackend, Observed, Outcome, Reply, SeenExit,
    Site, Step,
};
#[cfg(feature = "kvm-ioctls")]
pub use doctor::{Finding, Statement, statements};
pub use errno::{CallErrno, RawErrno};
pub use exit::{RawReason, RawReasons};
#[cfg(feature = "kvm-ioctls")]
pub use guest::{GuestError, StepAt};
pub use host::{HostError, Requirement};
pub use install::{InstallError, Installed, install};
#[cfg(feature = "kvm-ioctls")]
pub use measure::{
    Case, Deviation, MeasureError, Measured, NotTried, Pass, Seen, WriteEffect, measure,
};
#[cfg(feature = "kvm-ioctls")]
pub use model::ModelBackend;
pub use probe::{CpuSignature, HostCaps, IgnoreMsrs, Module, UnknownBits};
pub use raw::{RawBitmap, RawFilter, RawRange, set_filter_raw};
#[cfg(feature = "kvm-ioctls")]
pub use supported::{CpuidLeaf, Supported};
