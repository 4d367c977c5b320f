//! Tests of `msrgate exec` with real VMMs: QEMU, and small ones in `tests/vmms`.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "all of this is a test, its functions too"
)]

#[path = "exec/answers.rs"]
mod answers;
#[path = "exec/awkward.rs"]
mod awkward;
#[path = "exec/descriptors.rs"]
mod descriptors;
#[path = "exec/door.rs"]
mod door;
#[path = "exec/end.rs"]
mod end;
#[path = "exec/endings.rs"]
mod endings;
#[path = "exec/events.rs"]
mod events;
#[path = "exec/lab.rs"]
mod lab;
#[path = "exec/learn.rs"]
mod learn;
#[path = "exec/links.rs"]
mod links;
#[path = "exec/machines.rs"]
mod machines;
#[path = "exec/musl.rs"]
mod musl;
#[path = "exec/notices.rs"]
mod notices;
#[path = "exec/places.rs"]
mod places;
#[path = "exec/qemu.rs"]
mod qemu;
#[path = "exec/refused.rs"]
mod refused;
#[path = "exec/runs.rs"]
mod runs;
#[path = "exec/same.rs"]
mod same;
#[path = "exec/terminal.rs"]
mod terminal;
