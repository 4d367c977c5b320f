//! Tasks of this repository that need more than a shell.
//!
//! `cargo run -p xtask -- registers` regenerates the register table of `msrgate-policy` from
//! `crates/policy/data`; with `--check` it only compares, and fails when the table is stale.
#![forbid(unsafe_code)]

mod registers;

use std::path::Path;
use std::process::ExitCode;

const USAGE: &str = "usage: cargo run -p xtask -- registers [--check]";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match run(&words) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(words: &[&str]) -> anyhow::Result<()> {
    let policy = Path::new(env!("CARGO_MANIFEST_DIR")).join("../policy");
    match words {
        ["registers"] => registers::regenerate(&policy),
        ["registers", "--check"] => registers::check(&policy),
        _ => anyhow::bail!(USAGE),
    }
}
