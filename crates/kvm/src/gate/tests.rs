//! Tests of the gate in a real VM and in the model: every action, tried by the built-in guest.

mod actions;
mod beside;
mod clock;
mod devices;
mod explained;
mod kicks;
mod machine;
mod model;
mod nested;
mod orders;
mod random;
mod refused;
mod seen;
mod state;
mod threads;
mod told;
mod trouble;
