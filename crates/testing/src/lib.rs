//! Code that the tests of more than one crate share. Only tests link this crate.
#![forbid(unsafe_code)]

pub mod host;
pub mod messages;
pub mod page;
pub mod paper;
pub mod random;
pub mod seed;
