//! What a gate costs.
//!
//! `gate/answer/…` is what happens between an exit's fields and the reply in `kvm_run`, counters
//! included, and events where the name says so, under a policy of 500 entries: instructions counted by
//! callgrind, without valgrind none, which is said on stderr. Accesses in a VM stand beside a loop that
//! answers them itself, in the same process and in turns; without KVM there are none, as in the bench
//! `guest`.
//! `gate/first-touch` is how long a vCPU waits for an access that the filter has to open for first.

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
