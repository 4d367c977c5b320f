//! The number of instructions of a routine, counted by callgrind, a tool of valgrind.
//!
//! The bench starts itself under callgrind, with an environment variable that names the routine and the
//! number of runs. The bench starts two such processes, with different numbers of runs. The difference
//! between their counts of instructions is due to the routine alone, because both processes do the same
//! before and after the runs.

use std::env;
use std::io;
use std::process::{Command, Stdio};

/// The environment variable that tells a process under callgrind the routine's name and the number
/// of runs.
const ASKED: &str = "MSRGATE_BENCH_COUNT";

/// The number of runs of the routine in the first process under callgrind; the second process makes
/// twice as many.
const RUNS: u64 = 10_000;

/// The task of a process under callgrind: the routine that it has to run, and the number of runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Counted {
    /// The routine's name.
    pub name: String,
    /// The number of times that the process has to run the routine.
    pub runs: u64,
}

impl Counted {
    /// Returns the routine that this process has to run and the number of runs, or `None` if the process
    /// was not started under callgrind. After the runs the process must end.
    #[must_use]
    pub fn asked() -> Option<Self> {
        let asked = env::var(ASKED).ok()?;
        let (name, runs) = asked.rsplit_once(' ')?;
        Some(Self {
            name: name.to_owned(),
            runs: runs.parse().ok()?,
        })
    }

    /// Returns the number of instructions of one run of the routine `name`, or `None` if valgrind is not
    /// installed. This function starts the bench again under callgrind; the process under callgrind must
    /// make the runs that [`Self::asked`] returns.
    ///
    /// Only instructions in functions whose names match one of the patterns `within`, and in the functions
    /// that they call, are counted; `*` in a pattern matches anything.
    ///
    /// # Errors
    /// Returns an error if the process fails, or if callgrind prints no count.
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
        // The value of the environment variable has the same length for every number of runs, because
        // its length affects the layout of the process' memory.
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

/// Parses the count from a line such as `==123== Collected : 456`.
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
    fn collected_parses_number_of_instructions_that_callgrind_prints() {
        let said = "==7== Events    : Ir\n==7== Collected : 1234567\n==7==\n";
        assert_eq!(collected(said), Some(1_234_567));
        assert_eq!(collected("==7== Collected : \n"), None);
        assert_eq!(collected(""), None);
    }
}
