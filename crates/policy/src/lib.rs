//! MSR policies: the language, the names of registers, packing into a filter, explaining.
//!
//! Data goes one way: [`Source`] text is parsed into a [`Policy`], resolved into a [`Table`] that
//! says what happens to each of 2^32 MSRs in each direction, and packed into the
//! [`Filter`](msrgate_filter::Filter) of each [`Variant`] of a [`Compiled`] policy, which is
//! compared with the table before anyone sees it.
//!
//! A [`Program`] is a compiled policy as a file. Without the feature `parse`, which is on by default,
//! programs are all there is: no text is read, and no name is known.
//!
//! With the feature `schema` there is a JSON schema of the language, for editors.
//!
//! Everything here is pure: no file is opened and no device.
#![forbid(unsafe_code)]

mod action;
pub mod answer;
#[cfg(feature = "parse")]
mod compile;
mod cpu;
mod diff;
mod digest;
#[cfg(feature = "parse")]
mod effects;
pub mod emit;
#[cfg(feature = "parse")]
mod enforcement;
mod equality;
#[cfg(feature = "parse")]
mod explain;
#[cfg(feature = "parse")]
mod format;
mod forward;
#[cfg(feature = "parse")]
pub mod import;
#[cfg(feature = "parse")]
mod layout;
#[cfg(feature = "parse")]
mod machine;
#[cfg(feature = "parse")]
mod mistake;
mod msrs;
mod pack;
#[cfg(feature = "parse")]
mod parse;
#[cfg(feature = "parse")]
mod points;
#[cfg(feature = "parse")]
mod policy;
#[cfg(feature = "parse")]
mod print;
mod program;
#[cfg(feature = "parse")]
mod punctures;
#[cfg(feature = "parse")]
pub mod registers;
#[cfg(feature = "parse")]
mod remedy;
mod rules;
#[cfg(feature = "schema")]
mod schema;
#[cfg(feature = "parse")]
mod selector;
mod settings;
mod shown;
#[cfg(feature = "parse")]
mod source;
#[cfg(feature = "parse")]
mod space;
#[cfg(feature = "parse")]
mod table;
#[cfg(feature = "parse")]
pub mod trace;
mod verdicts;

pub use action::{Action, Comparison, Device, Emulated, Mask, Outside};
#[cfg(feature = "parse")]
pub use compile::{Compiled, Variant, compile};
#[cfg(feature = "parse")]
pub use cpu::text::CpuError;
pub use cpu::{Cpu, CpuSet};
pub use diff::{
    Change, Difference, Direction, LogChange, SettingChange, changes, differences, setting_changes,
};
pub use digest::Digest;
#[cfg(feature = "parse")]
pub use effects::write_effect;
#[cfg(feature = "parse")]
pub use enforcement::{Cause, Enforcement, Enforcer, Extent, Hole, enforcement, enforcement_of};
#[cfg(feature = "parse")]
pub use explain::{Explanation, Reported, explain};
#[cfg(feature = "parse")]
pub use format::format;
pub use forward::{CpuidBit, CpuidRegister, Forward, Forwarding, forward};
#[cfg(feature = "parse")]
pub use machine::{RefusedFeature, UnsavedWrites, is_offered, refused_features, unsaved_writes};
#[cfg(feature = "parse")]
pub use mistake::{Mistake, Mistakes, Wrong};
pub use msrs::{MsrRange, MsrSet};
pub use pack::{Colour, PackError, Window};
#[cfg(feature = "parse")]
pub use parse::{
    IncludeError, Includes, MAX_BYTES, MAX_DEPTH, MAX_ENTRIES, MAX_FILES, MAX_LINE, MAX_TABLES,
    MAX_TOKENS, NoIncludes, parse,
};
#[cfg(feature = "parse")]
pub use points::points;
#[cfg(feature = "parse")]
pub use policy::{Entry, EntryId, Policy, Settings, SourceId, When, WhenId};
#[cfg(feature = "parse")]
pub use print::print;
pub use program::{Program, ProgramError, ProgramSettings, ProgramVariant};
#[cfg(feature = "parse")]
pub use punctures::{Puncture, punctures};
#[cfg(feature = "parse")]
pub use remedy::Remedy;
pub use rules::{FileId, Line, Origin, Rule, Rules};
#[cfg(feature = "schema")]
pub use schema::schema;
#[cfg(feature = "parse")]
pub use selector::{SelectorError, parse_msrs};
pub use settings::{Log, Microcode, Mode, Unknown, UnknownAction, Update};
pub use shown::{is_shown, one_line, shown, shown_json};
#[cfg(feature = "parse")]
pub use source::{Place, Source};
#[cfg(feature = "parse")]
pub use space::{Cell, Cluster, Space, Tally, space};
#[cfg(feature = "parse")]
pub use table::{Said, Segment, Table};
pub use verdicts::{CompileError, Verdicts};
