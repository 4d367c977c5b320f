//! Tasks of this repository that need more than a shell script.
//!
//! `cargo run -p xtask -- registers` regenerates the register table of `msrgate-policy` from
//! `crates/policy/data`. `cargo run -p xtask -- schema` regenerates the JSON schema of the policy language
//! in `docs`. `cargo run -p xtask -- evidence` regenerates the page `docs/evidence.md`, which names the
//! tests of each statement, from `docs/evidence.toml`. With `--check` each of these commands only
//! compares, and fails if a committed file is out of date. `cargo run -p xtask -- names FOLDER` takes the
//! names of registers from the code of other projects.
#![forbid(unsafe_code)]

mod code_bases;
mod evidence;
mod generated;
mod registers;
mod schema;

use std::path::Path;
use std::process::ExitCode;

const USAGE: &str =
    "usage: cargo run -p xtask -- registers|schema|evidence [--check], or names FOLDER";

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
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"));
    let (policy, docs) = (folder.join("../policy"), folder.join("../../docs"));
    match words {
        ["registers"] => registers::regenerate(&policy),
        ["registers", "--check"] => registers::check(&policy),
        ["names", from] => code_bases::take(Path::new(from), &policy.join("data")),
        ["schema"] => schema::regenerate(&docs),
        ["schema", "--check"] => schema::check(&docs),
        ["evidence"] => evidence::regenerate(&docs),
        ["evidence", "--check"] => evidence::check(&docs),
        _ => anyhow::bail!(USAGE),
    }
}
