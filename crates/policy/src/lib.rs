//! MSR policies: the language, the names of registers, compiling into filters, and explaining.
//!
//! Data goes one way. [`parse`](parse()) reads [`Source`] text into a [`Policy`] and resolves the
//! policy into [`Rules`], which say what happens to each of the 2^32 MSRs in each direction.
//! [`compile`](compile()) packs the rules into the [`Filter`](msrgate_filter::Filter) of each
//! [`Variant`] of a [`Compiled`] policy, and compares each filter with its rules before it returns
//! them.
//!
//! The feature `schema` adds a JSON schema of the language, for editors.
//!
//! This crate is pure: it opens no file and no device.
#![forbid(unsafe_code)]

mod compile;
mod cpu;
mod effects;
mod enforcement;
mod explain;
mod format;
mod grant;
pub mod import;
mod layout;
pub mod learn;
mod limits;
pub mod lint;
mod mistake;
mod nearest;
mod overrides;
mod overview;
mod parse;
mod policy;
mod print;
mod punctures;
pub mod registers;
mod remedy;
mod resolve;
#[cfg(feature = "schema")]
mod schema;
mod selector;
mod source;
mod test_points;
pub mod trace;

pub use compile::{Compiled, NotCompiled, compile};
pub use cpu::{CpuError, NamedCpu, parse_cpu};
pub use effects::write_effect;
pub use enforcement::{Bypass, Cause, Enforcement, Enforcer, Extent, enforcement, enforcement_of};
pub use explain::{Events, Explanation, Reported, explain};
pub use format::format;
pub use grant::{Grant, GrantLine, grant};
pub use limits::{MAX_BYTES, MAX_DEPTH, MAX_ENTRIES, MAX_FILES, MAX_LINE, MAX_TABLES, MAX_TOKENS};
pub use mistake::{Mistake, MistakeKind, Mistakes};
pub use msrgate_program::{
    Action, Change, CompileError, Cpu, CpuSet, CpuidBit, CpuidRegister, DecidedBy, Device,
    Difference, Digest, Direction, Emulated, EntryId, FileId, Log, LogChange, Mask, Microcode,
    Mode, MsrRange, MsrSet, Origin, Outside, PackError, Program, ResolvedVariant, Rule, Rules,
    SettingChange, TextReader, TooManyToCompare, Unknown, UnknownAction, Update, Variant, Window,
    answer, changes, differences, emit, forward, is_no_file, is_seen, is_shown, one_line,
    setting_changes, shown, shown_json, shown_name,
};
pub use overview::{Cell, Cluster, Overview, Tally, overview};
pub use parse::{HEAD_BYTES, IncludeError, Includes, NoIncludes, head_of, is_policy};
pub use policy::{Entry, Policy, Settings, SourceId, When, WhenId};
pub use print::print;
pub use remedy::Remedy;
pub use resolve::{ResolvedPolicy, parse};
#[cfg(feature = "schema")]
pub use schema::schema;
pub use selector::{SelectorError, index_readings, parse_msrs};
pub use source::{Place, Source};
pub use test_points::test_points;
