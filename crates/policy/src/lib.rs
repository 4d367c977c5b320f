//! MSR policies: the language, the names of registers, packing into a filter, explaining.
#![forbid(unsafe_code)]

pub mod registers;
