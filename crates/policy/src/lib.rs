//! MSR policies: the language, the names of registers, packing into a filter, explaining.
//!
//! Data goes one way: [`Source`] text is parsed into a [`Policy`], resolved into a [`Table`] that
//! says what happens to each of 2^32 MSRs in each direction, and packed into the
//! [`Filter`](msrgate_filter::Filter) of a [`Compiled`] policy, which is compared with the table
//! before anyone sees it.
//!
//! Everything here is pure: no file is opened and no device.
#![forbid(unsafe_code)]

mod compile;
mod effects;
mod explain;
mod mistake;
mod pack;
mod parse;
mod points;
mod policy;
pub mod registers;
mod selector;
mod source;
mod table;

pub use compile::{CompileError, Compiled, compile};
pub use effects::write_effect;
pub use explain::{Explanation, explain};
pub use mistake::{Mistake, Mistakes};
pub use pack::{Colour, PackError, Window};
pub use parse::{MAX_BYTES, MAX_ENTRIES, MAX_LINE, parse};
pub use points::points;
pub use policy::{Action, Entry, EntryId, MsrRange, Policy};
pub use selector::{SelectorError, parse_msrs};
pub use source::{Place, Source, one_line};
pub use table::{Said, Segment, Table};
