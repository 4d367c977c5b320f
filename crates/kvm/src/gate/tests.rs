//! The gate in a real VM: every action, by the built-in guest.

mod actions;
mod kicks;
mod machine;
mod paper;
mod state;
mod threads;
