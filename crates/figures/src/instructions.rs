//! How many instructions a routine takes, counted by callgrind, which is in valgrind.
//!
//! The bench is started anew under callgrind, told by an environment variable which routine to run
//! and how often. Twice, and the difference is of the routine alone: what the process does before
//! and after is the same in both.

use std::env;
use std::io;
use std::process::{Command, Stdio};

/// Names the routine and how often it is to run.
const ASKED: &str = "MSRGATE_BENCH_COUNT";

/// Runs of the shorter process; the longer has twice as many.
const RUNS: u64 = 10_000;

/// What a process that callgrind watches was started for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Counted {
    /// The routine.
    pub name: String,
    /// How often it is to run.
    pub runs: u64,
}

impl Counted {
    /// What this process is to run and do nothing else; `None` in one that nobody watches.
    #[must_use]
    pub fn asked() -> Option<Self> {
        let asked = env::var(ASKED).ok()?;
        let (name, runs) = asked.rsplit_once(' ')?;
        Some(Self {
            name: name.to_owned(),
            runs: runs.parse().ok()?,
        })
    }

    /// The instructions of one run of the routine `name`, which this bench runs as often as
    /// [`Self::asked`] says; of these, those that run `within` functions whose names fit one of these
    /// patterns, with `*` for anything, and what they call. `None` where there is no valgrind.
    ///
    /// # Errors
    /// The process failed, or callgrind does not say what it counted.
    pub fn instructions(name: &str, within: &[&str]) -> io::Result<Option<f64>> {
        let [Some(fewer), Some(more)] =
            [total(name, within, RUNS)?, total(name, within, 2 * RUNS)?]
        else {
            return Ok(None);
        };
        #[expect(
            clippy::cast_precision_loss,
            reason = "nothing counted here reaches 2^53"
        )]
        let of_all = more.saturating_sub(fewer) as f64;
        #[expect(clippy::cast_precision_loss, reason = "it is ten thousand")]
        let runs = RUNS as f64;
        Ok(Some(of_all / runs))
    }
}

fn total(name: &str, within: &[&str], runs: u64) -> io::Result<Option<u64>> {
    let outcome = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .args(within.iter().map(|one| format!("--toggle-collect={one}")))
        .arg(env::current_exe()?)
        // Of one length, whatever the count: the process lays out what it is given.
        .env(ASKED, format!("{name} {runs:08}"))
        .stdin(Stdio::null())
        .output();
    let output = match outcome {
        Ok(output) => output,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let said = String::from_utf8_lossy(&output.stderr);
    match collected(&said) {
        Some(count) if output.status.success() => Ok(Some(count)),
        _ => Err(io::Error::other(format!("callgrind on {name}: {said}"))),
    }
}

/// `==123== Collected : 456`.
fn collected(said: &str) -> Option<u64> {
    let line = said.lines().rev().find_map(|line| {
        let (_, rest) = line.split_once("Collected :")?;
        Some(rest.trim())
    });
    line?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_count_is_read_from_what_callgrind_says() {
        let said = "==7== Events    : Ir\n==7== Collected : 1234567\n==7==\n";
        assert_eq!(collected(said), Some(1_234_567));
        assert_eq!(collected("==7== Collected : \n"), None);
        assert_eq!(collected(""), None);
    }
}
