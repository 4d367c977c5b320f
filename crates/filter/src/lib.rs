//! KVM's x86 MSR filter as a library.
//!
//! User space hands a VM up to sixteen bitmaps over ranges of model-specific registers; each guest
//! RDMSR and WRMSR is then allowed, refused with #GP, or handed to user space. This crate is that
//! mechanism: the [`Filter`] and its [`decide`](Filter::decide), the bytes of
//! `KVM_X86_SET_MSR_FILTER` in [`abi`], a [`Vm`] with [`Vcpu`]s that behaves like KVM's, and the
//! hardware bitmaps that keep allowed accesses out of the hypervisor in [`intercept`].
//!
//! Statements such as S3.2 are those of `docs/kvm-semantics.md`.
//!
//! What this crate does not do: it opens no device, reads no policy, knows no register's name, and
//! has no opinion on what ought to be allowed.
//!
#![doc = include_str!("seed.md")]
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod abi;
mod bitmap;
mod decide;
mod errno;
mod exit;
mod filter;
pub mod intercept;
mod lookup;
mod msr;
mod publish;
mod range;
mod registers;
mod revision;
mod set;
mod shared;
mod vcpu;
mod vm;

pub use bitmap::{Bitmap, BitmapError};
pub use decide::{Because, Decision, RangeNumber, Verdict};
pub use errno::Errno;
pub use exit::{Exit, ExitNumber, ExitReason, ReasonMask, Reply, RunLayout, UnknownReasons};
pub use filter::{Filter, FilterError};
pub use msr::{Access, Accesses, MsrIndex, X2APIC};
pub use range::{DefaultAction, MAX_RANGES, Range};
pub use registers::{Origin, Register, RegisterFault, RegisterMap, Registers};
pub use revision::Revision;
pub use set::{RangeError, SetCall, SetError};
pub use shared::{UnknownMsrs, VcpuNumber};
pub use vcpu::hardware::Hardware;
pub use vcpu::nested::{ListAccess, ListFailure, ListOutcome};
pub use vcpu::run::{Entry, Executed, GuestMode, Instruction, RunExit};
pub use vcpu::{ExitPending, Gprs, Privilege, SavedVcpu, SingleStep, Vcpu};
pub use vm::{Capability, Extension, ForeignFilter, Vm};
