//! An MSR firewall for a VMM: probing the host, installing a filter, answering what it refuses.
//!
//! [`HostCaps`] says what this host's KVM can do, or why not. [`install`](install()) puts a [`Filter`] into
//! a VM. A [`Gate`](gate::Gate) does all of it for a VMM: it installs a compiled policy, a [`Program`],
//! answers the exits, replaces the policy while the VM runs, and tells what it saw.
//!
//! The crate re-exports each type of [`filter`] and [`program`] that its own interface speaks of, so that a
//! VMM depends on this crate alone.
//!
//! Statements such as S3.2 are those of `docs/kvm-semantics.md`.
//!
//! # Features
//!
//! `kvm-ioctls`, which is on unless switched off, brings calls that take types of `kvm-ioctls` 0.25, and the
//! module [`measure`], whose [`Backend`](measure::Backend) runs scripts of accesses under a filter, mistakes
//! of user space included, and shows what the guest and user space saw. Without the feature, every call takes
//! file descriptors and shared pages of whichever binding the VMM has.
//!
//! What this crate does not do: it reads no policy's text and knows no register's name.

// A VMM's own types hold these, and derive it.
#![deny(missing_debug_implementations)]

#[cfg(feature = "bench")]
#[doc(hidden)]
pub mod bench;
#[cfg(feature = "kvm-ioctls")]
mod binding;
mod errno;
mod exit;
pub mod gate;
mod host;
mod install;
#[cfg(feature = "kvm-ioctls")]
pub mod measure;
mod probe;
pub mod sys;

pub use msrgate_filter as filter;
pub use msrgate_program as program;

pub use errno::{CallErrno, RawErrno};
pub use exit::{RawReason, RawReasons};
pub use host::{HostError, Requirement};
pub use install::{InstallError, Installed, install};
pub use msrgate_filter::{
    Access, Accesses, Errno, ExitReason, Filter, MsrIndex, ReasonMask, Reply, Revision, Verdict,
};
pub use msrgate_program::answer::{Disposition, ResponderError, RestoreError};
pub use msrgate_program::{
    Action, BuildError, CompileError, Cpu, Digest, Emulated, Log, Microcode, Mode, MsrRange,
    Origin, Program, ProgramBuilder, ProgramError, Unknown,
};
pub use probe::{CpuSignature, HostCaps, IgnoreMsrs, Module, UnknownBits};
