//! MSR policies: the language, the names of registers, packing into a filter, explaining.
//!
//! Data goes one way: [`Source`] text is parsed into a [`Policy`], resolved into a [`Table`] that
//! says what happens to each of 2^32 MSRs in each direction, and packed into the
//! [`Filter`](msrgate_filter::Filter) of each [`Variant`] of a [`Compiled`] policy, which is
//! compared with the table before anyone sees it.
//!
//! Everything here is pure: no file is opened and no device.
#![forbid(unsafe_code)]

mod action;
mod compile;
mod cpu;
mod effects;
mod explain;
mod mistake;
mod msrs;
mod pack;
mod parse;
mod points;
mod policy;
mod print;
pub mod registers;
mod selector;
mod source;
mod table;

pub use action::{Action, Comparison, Device, Emulated, Mask, Outside};
pub use compile::{CompileError, Compiled, Variant, compile};
pub use cpu::{Cpu, CpuError, CpuSet};
pub use effects::write_effect;
pub use explain::{Explanation, explain};
pub use mistake::{Mistake, Mistakes, Wrong};
pub use msrs::{MsrRange, MsrSet};
pub use pack::{Colour, PackError, Window};
pub use parse::{
    IncludeError, Includes, MAX_BYTES, MAX_DEPTH, MAX_ENTRIES, MAX_LINE, NoIncludes, parse,
};
pub use points::points;
pub use policy::{
    Entry, EntryId, Log, Microcode, Mode, Policy, Settings, SourceId, Unknown, UnknownAction,
    Update, When, WhenId,
};
pub use print::print;
pub use selector::{SelectorError, parse_msrs};
pub use source::{Place, Source};
pub use table::{Said, Segment, Table};
