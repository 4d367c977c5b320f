//! The cost of a gate.
//!
//! `gate/answer/…` is the number of instructions between an exit's fields and the reply in `kvm_run`,
//! under a policy of 500 entries. It includes counters, and events where the name says so. Callgrind
//! counts the instructions; without valgrind these figures are skipped with a note on stderr.
//!
//! The figures of accesses in a VM compare a gate with a loop that answers by itself, in the same process
//! and in turns. Without KVM they are skipped, as in the bench `guest`.
//!
//! `gate/first-touch` is the time that a vCPU waits at a first access, for which the filter has to be
//! opened.

mod cost;
mod instructions;
mod memory;
mod touch;

use msrgate_figures::{Counted, Figures};
use msrgate_kvm::HostCaps;
use msrgate_policy::{NoIncludes, Program, Source, compile, parse};

type Failure = Box<dyn std::error::Error>;

fn program(text: &str) -> Result<Program, Failure> {
    let policy = parse(&Source::new("bench.toml", text), &mut NoIncludes)?;
    Ok(compile(policy)?.into_program())
}

fn main() -> Result<(), Failure> {
    if let Some(asked) = Counted::asked() {
        return instructions::run(&asked);
    }
    let mut figures = Figures::from_args()?;
    instructions::figures(&mut figures)?;
    memory::figures(&mut figures)?;
    let host = match HostCaps::probe() {
        Ok(host) => host,
        Err(error) => {
            let required = std::env::var("MSRGATE_REQUIRE").unwrap_or_default();
            if required.split(',').any(|word| word == "kvm") {
                return Err(format!("{error}. {}", error.advice()).into());
            }
            eprintln!("SKIPPED: {error}. {}", error.advice());
            return Ok(());
        }
    };
    cost::figures(&mut figures, &host)?;
    touch::figures(&mut figures, &host)
}
