//! Compiled MSR policies: what a VMM, a preload library or a hypervisor links.
//!
//! A [`Program`] is a compiled policy as a value and as a file: for each kind of processor the rules that
//! say what happens to each of 2^32 MSRs in each direction, and the
//! [`Filter`](msrgate_filter::Filter) that a kernel gets, which is compared with the rules before
//! anyone sees it. [`answer`] decides what user space says to the accesses that the filter refuses.
//!
//! What this crate does not do: it reads no policy's text, knows no register's name, opens no file and
//! no device. It needs no std, only `alloc`.
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
pub use shown::{TextReader, is_seen, is_shown, one_line, quoted, shown, shown_json};
