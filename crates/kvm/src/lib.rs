//! An MSR firewall for a VMM: probing the host, installing a filter, answering the accesses that the
//! filter denies.
//!
//! [`HostCaps`] describes this host's KVM; if KVM is unusable, probing returns the reason, a
//! [`HostError`].
//! [`install`](install()) puts a [`Filter`] into a VM. A [`Gate`](gate::Gate) does everything that a VMM
//! needs: it installs a compiled policy, a [`Program`], answers the exits, replaces the policy while the
//! VM runs, and reports the accesses as events.
//!
//! The crate re-exports each type of [`filter`] and [`program`] that occurs in its own interface, so a VMM
//! depends on this crate alone.
//!
//! Numbers such as S3.2 name statements of `docs/kvm-semantics.md`.
//!
//! # Terminology
//!
//! - *program*: a compiled policy, as a value ([`Program`]) or a file. A program has one or more variants.
//! - *variant*: the rules and the kernel filter for one set of CPUs. The gate chooses the variant by the
//!   CPUID of the VM's first vCPU.
//! - *rule*: what a variant does with an access to an MSR in one direction: its [`Action`], and how the
//!   access is logged.
//! - *gate*: the object that carries out a program for one VM ([`Gate`](gate::Gate)). Each vCPU's thread
//!   has a [`VcpuGate`](gate::VcpuGate).
//! - *responder*: the value that chooses the response to an MSR exit, without side effects
//!   ([`Responder`](program::answer::Responder)).
//! - *response*: what the responder tells the gate to do with an exit: complete, rewind or forward it, ask
//!   a device or a handler, or end the VM ([`Response`](program::answer::Response)).
//! - *disposition*: what the gate did with an access, in one word, for events and counters
//!   ([`Disposition`]).
//! - *default action*: what happens to an access that no range of the kernel filter matches
//!   ([`DefaultAction`](filter::DefaultAction)).
//! - *forward*: to carry an access to the register that KVM keeps, by `KVM_GET_MSRS` or `KVM_SET_MSRS`.
//! - *rewind*: to complete an exit so that the guest executes its RDMSR or WRMSR again (S5.8).
//! - *first access*: the first access of a VM's guest to an MSR in one direction that the policy asks to
//!   log or audit ([`FirstAccess`](gate::FirstAccess)). The gate logs this access once, then opens the
//!   kernel filter for such accesses.
//! - *pin*: an action that keeps the value of the first write until the vCPU is reset. In enforce mode a
//!   later write of another value is a #GP.
//! - *handler request*: an access that the VMM's own code has to answer
//!   ([`HandlerRequest`](gate::HandlerRequest)).
//!
//! # Features
//!
//! The feature `kvm-ioctls` is on by default. This feature adds functions that take types of `kvm-ioctls`
//! 0.25, and the module [`measure`], whose [`Backend`](measure::Backend) runs scripts of MSR accesses under
//! any filter, even a malformed one, and returns what the guest and user space observed. Without this
//! feature, every function takes file descriptors and shared pages, so the crate works with any KVM binding.
//!
//! This crate reads no policy text and knows no register names.

// A VMM's own types contain types of this crate and derive Debug, so each type of this crate must be Debug,
// too.
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
