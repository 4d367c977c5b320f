//! The subcommands of `msrgate`, with a module for each.

mod check;
mod compile;
mod diff;
mod doctor;
mod exec;
mod explain;
mod fmt;
mod help;
mod import;
mod learn;
mod msr;
mod policies;
mod recordings;
mod replay;
mod review;
mod test;

use crate::cli::Command;
use crate::failure::{Answer, Failure};
use crate::results::Results;

/// Carries out a command, and writes its results to `out`.
pub(crate) fn run(command: &Command, out: &mut Results) -> Result<Answer, Failure> {
    match command {
        Command::Test(args) => test::run(args, out),
        Command::Check(args) => check::run(args, out),
        Command::Explain(args) => explain::run(args, out),
        Command::Diff(args) => diff::run(args, out),
        Command::Compile(args) => compile::run(args, out),
        Command::Replay(args) => replay::run(args, out),
        Command::Review(args) => review::run(args, out),
        Command::Import(args) => import::run(args, out),
        Command::Fmt(args) => fmt::run(args, out),
        Command::Msr(args) => msr::run(args, out),
        Command::Doctor(args) => doctor::run(args, out),
        Command::Policies(args) => policies::run(args, out),
        Command::Help(args) => help::run(args, out),
        Command::Exec(args) => Err(exec::run(args)),
        Command::Learn(args) => learn::run(args, out),
    }
}
