//! Compiled MSR policies, for a VMM, a preload library or a hypervisor to link.
//!
//! A [`Program`] is a compiled policy, as a value and as a file. For each kind of processor it
//! contains rules, which give the action for each of 2^32 MSRs in each direction, and the
//! [`Filter`](msrgate_filter::Filter) for the kernel. The filter is compared with the rules before
//! the program can be used. The module [`answer`] decides how user space responds to the accesses
//! that the filter denies.
//!
//! This crate does not read the text of a policy, knows no register names, and opens no file or
//! device. The crate needs only `alloc`, not std.
//!
//! # Terminology
//!
//! - **Program** ([`Program`]): a compiled policy, with all that is needed to enforce it and
//!   without its text.
//! - **Variant** ([`Variant`]): the part of a program for the processors on which the same
//!   `[[when]]` sections of the policy apply: a set of rules, a filter, and the exit reasons that
//!   the filter needs.
//! - **Rule** ([`Rule`]): consecutive MSRs that have the same action and the same logging in one
//!   direction, for the same reason: an entry of the policy, its default, or KVM.
//! - **Responder** ([`answer::Responder`]): a variant prepared to answer exits. All vCPUs of a VM
//!   share the responder.
//! - **Response** ([`answer::Response`]): the step with which the gate, the part of a VMM that
//!   handles MSR exits, reacts to an exit: reply, rewind, forward, ask a device or a handler, or
//!   kill.
//! - **Disposition** ([`answer::Disposition`]): what the gate did with an access, as one word for
//!   events and counters.
//! - **Forward**: to carry out an access of the guest with `KVM_GET_MSRS` or `KVM_SET_MSRS` on the
//!   register that KVM keeps. [`forward()`] lists the registers for which this is sound.
//! - **Rewind**: to end an exit so that the guest executes the same instruction again (S5.8 of
//!   `docs/kvm-semantics.md`).
//! - **First access**: the first access of a VM to an MSR in one direction. With [`Log::First`]
//!   only this access becomes an event, and the first that is refused if this one was not.
//! - **Pin** ([`Action::Pin`]): a rule with which a register keeps the guest's first write until
//!   the vCPU is reset. Later writes of another value get #GP.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

extern crate alloc;

mod action;
pub mod answer;
mod builder;
mod cpu;
mod diff;
mod digest;
pub mod emit;
mod forward;
mod layers;
mod msrs;
mod origin;
mod pack;
mod program;
mod range_map;
mod rules;
mod settings;
mod shown;

pub use action::{Action, Comparison, Device, Emulated, Mask, Outside};
pub use builder::{BuildError, ProgramBuilder};
pub use cpu::{Cpu, CpuPart, CpuSet, distinguished, told_apart};
pub use diff::{
    Change, Difference, Direction, LogChange, MAX_COMPARED, SettingChange, TooManyToCompare,
    changes, differences, setting_changes,
};
pub use digest::Digest;
pub use forward::{CpuidBit, CpuidRegister, Forward, Forwarding, forward};
pub use layers::{Layers, resolve};
pub use msrs::{MsrRange, MsrSet};
pub use origin::{DecidedBy, EntryId, FileId, Line, Origin};
pub use pack::{Colour, CompileError, PackError, Verdicts, Window};
pub use program::{Program, ProgramError, ProgramSettings, ResolvedVariant, Variant};
pub use range_map::{RangeMap, RangeMapBuilder};
pub use rules::{Outcome, Rule, Rules, RulesBuilder};
pub use settings::{Log, Microcode, Mode, Unknown, UnknownAction, Update};
pub use shown::{
    TextReader, is_no_file, is_seen, is_shown, one_line, quoted, shown, shown_json, shown_name,
};
