//! What the tests of more than one crate share. Nobody else links it.
#![forbid(unsafe_code)]

pub mod host;
pub mod messages;
pub mod random;
pub mod seed;
