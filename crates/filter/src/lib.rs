//! KVM's x86 MSR filter as a library.
//!
//! A VMM gives the kernel up to sixteen bitmaps over ranges of model-specific registers. The kernel
//! then allows each RDMSR and WRMSR of the guest, refuses the access with #GP, or exits to user
//! space. This crate implements that mechanism without a kernel.
//!
//! # Building a filter
//!
//! A [`Filter`] is a list of [`Range`]s, tried in order, and a [`DefaultAction`] for the accesses
//! that no range covers. [`Filter::new`] refuses ranges and default actions that the kernel would
//! refuse.
//!
//! ```
//! use msrgate_filter::{Accesses, Bitmap, DefaultAction, Filter, MsrIndex, Range, Revision};
//!
//! // A range of eight MSRs from 0x174 on, of which only 0x177 is allowed.
//! let bits = Bitmap::from_fn(8, |offset| offset == 3)?;
//! let range = Range::new(Accesses::Both, MsrIndex::new(0x174), bits);
//! let filter = Filter::new(Revision::Mainline, DefaultAction::Deny, vec![range])?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Deciding
//!
//! [`Filter::decide`] returns the verdict on one access and the reason for it.
//!
//! ```
//! # use msrgate_filter::{Accesses, Bitmap, DefaultAction, Filter, Range, Revision};
//! use msrgate_filter::{Access, Because, MsrIndex, Verdict};
//! # let bits = Bitmap::from_fn(8, |offset| offset == 3)?;
//! # let range = Range::new(Accesses::Both, MsrIndex::new(0x174), bits);
//! # let filter = Filter::new(Revision::Mainline, DefaultAction::Deny, vec![range])?;
//!
//! let decision = filter.decide(MsrIndex::new(0x177), Access::Write);
//! assert_eq!(decision.verdict, Verdict::Allow);
//!
//! let decision = filter.decide(MsrIndex::new(0x10), Access::Read);
//! assert_eq!(decision.verdict, Verdict::Deny);
//! assert_eq!(decision.because, Because::Default);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Setting a filter
//!
//! [`Vm::set_filter`] sets a filter in a [`Vm`] of this crate, whose [`Vcpu`]s behave like KVM's.
//! For a VM of KVM itself, [`abi::Request::of`] makes the struct and the bitmaps that
//! `KVM_X86_SET_MSR_FILTER` takes; the crate `msrgate-kvm` makes the call.
//!
//! ```
//! # use msrgate_filter::{Accesses, Bitmap, DefaultAction, Filter, MsrIndex, Range};
//! use msrgate_filter::abi::{CallerWidth, Request, UserAddress};
//! use msrgate_filter::{Revision, Vm};
//! # let bits = Bitmap::from_fn(8, |offset| offset == 3)?;
//! # let range = Range::new(Accesses::Both, MsrIndex::new(0x174), bits);
//! # let filter = Filter::new(Revision::Mainline, DefaultAction::Deny, vec![range])?;
//!
//! let vm = Vm::new(Revision::Mainline);
//! vm.set_filter(&filter)?;
//!
//! // The caller puts the bitmaps at this address.
//! let (request, bitmaps) = Request::of(&filter, UserAddress::new(0x1000));
//! assert_eq!(request.encode(CallerWidth::Bits64)?.len(), 392);
//! assert_eq!(bitmaps.len(), 8);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! [`intercept`] computes the hardware bitmaps that let allowed accesses through without a VM exit.
//!
//! Numbers such as S3.2 refer to the statements of `docs/kvm-semantics.md`. `docs/seed.md` lists
//! each part of the kernel patch from which the filter comes, with its item in this crate.
//!
//! This crate opens no device, reads no policy, knows no register names, and does not say which
//! accesses a filter should allow.
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
