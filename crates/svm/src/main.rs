//! msrgate's thin hypervisor for AMD processors: the part that touches hardware.
//!
//! `README.md` shows how to run it. The library of this package holds everything that needs no hardware.
#![no_std]
#![no_main]

extern crate alloc;

mod console;
mod hardware;
mod maps;
mod physical;
mod processors;
mod runtime;
mod serve;
mod start;
mod status;
