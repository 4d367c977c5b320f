//! Measurements for all benches. A bench passes its routines to this crate, which runs them under criterion
//! and prints one line per figure to stdout, `NAME VALUE UNIT`. The output of criterion goes to stderr.
//!
//! Only benches use this crate. The first argument of a bench selects the figures whose names contain it.
#![forbid(unsafe_code)]

mod instructions;

use std::cell::RefCell;
use std::fmt;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use criterion::{Bencher, Criterion};

pub use instructions::Counted;

/// The number of samples of each timed routine; its figure is the median of the samples.
const SAMPLES: usize = 60;

/// The unit of a figure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// The figure is the time of one operation.
    Time(TimeUnit),
    /// The figure is the number of operations per unit of time.
    Rate(RateUnit),
    /// The unit is `KiB`, 1024 bytes.
    Kibibytes,
    /// The unit is `MiB`, 1024 KiB.
    Mebibytes,
    /// The unit is `x`: the figure is the ratio of two measurements.
    Times,
    /// The unit is `instructions`, which the CPU executes for one operation.
    Instructions,
    /// The unit is `allocations` from the heap.
    Allocations,
}

/// The unit of a rate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RateUnit {
    /// The unit is `/s`, operations per second.
    PerSecond,
    /// The unit is `M/s`, millions of operations per second.
    MillionsPerSecond,
}

impl RateUnit {
    const fn operations(self) -> f64 {
        match self {
            Self::PerSecond => 1.0,
            Self::MillionsPerSecond => 1e6,
        }
    }
}

/// The unit of time in which a figure is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TimeUnit {
    /// Nanoseconds, printed as `ns`.
    Nanoseconds,
    /// Microseconds, printed as `us`.
    Microseconds,
    /// Milliseconds, printed as `ms`.
    Milliseconds,
}

impl TimeUnit {
    const fn per_second(self) -> f64 {
        match self {
            Self::Nanoseconds => 1e9,
            Self::Microseconds => 1e6,
            Self::Milliseconds => 1e3,
        }
    }
}

impl fmt::Display for Unit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Time(TimeUnit::Nanoseconds) => "ns",
            Self::Time(TimeUnit::Microseconds) => "us",
            Self::Time(TimeUnit::Milliseconds) => "ms",
            Self::Rate(RateUnit::PerSecond) => "/s",
            Self::Rate(RateUnit::MillionsPerSecond) => "M/s",
            Self::Kibibytes => "KiB",
            Self::Mebibytes => "MiB",
            Self::Times => "x",
            Self::Instructions => "instructions",
            Self::Allocations => "allocations",
        })
    }
}

/// A figure's name, and the number of operations of one run of its routine.
#[derive(Clone, Copy, Debug)]
pub struct Batch<'a> {
    /// The figure's name.
    pub name: &'a str,
    /// The number of operations in one run of the routine. The figure is the time of the run
    /// divided by this number.
    pub operations: u32,
}

/// Measures the figures that the first argument of the bench selects, and prints them.
pub struct Figures {
    criterion: Criterion,
    wanted: String,
    out: File,
}

impl Figures {
    /// Reads from the arguments of the bench which figures to measure. Sends all other output that
    /// goes to stdout to stderr, so that stdout has only the figures.
    ///
    /// # Errors
    /// Returns an error if stdout or stderr is closed.
    pub fn from_args() -> io::Result<Self> {
        let wanted = std::env::args().skip(1).find(|arg| !arg.starts_with('-'));
        let out = File::from(io::stdout().as_fd().try_clone_to_owned()?);
        rustix::stdio::dup2_stdout(io::stderr())?;
        let criterion = Criterion::default()
            .sample_size(SAMPLES)
            .warm_up_time(Duration::from_millis(300))
            .measurement_time(Duration::from_secs(1))
            .nresamples(2_000)
            .without_plots();
        Ok(Self {
            criterion,
            wanted: wanted.unwrap_or_default(),
            out,
        })
    }

    /// Prints a figure whose value the bench has computed itself, without timing a routine.
    ///
    /// # Errors
    /// Returns an error if stdout cannot be written.
    pub fn value(&mut self, name: &str, value: f64, unit: Unit) -> io::Result<()> {
        if self.wants(name) {
            self.print(name, value, unit)?;
        }
        Ok(())
    }

    /// Prints the time of one operation of `routine`.
    ///
    /// # Errors
    /// Returns an error if stdout cannot be written.
    pub fn time<R>(
        &mut self,
        batch: Batch<'_>,
        unit: TimeUnit,
        routine: impl FnMut() -> R,
    ) -> io::Result<()> {
        match self.seconds(batch, routine) {
            Some(seconds) => self.print_time(batch, seconds, unit),
            None => Ok(()),
        }
    }

    /// Prints the number of operations of `routine` per second.
    ///
    /// # Errors
    /// Returns an error if stdout cannot be written.
    pub fn rate<R>(
        &mut self,
        batch: Batch<'_>,
        unit: RateUnit,
        routine: impl FnMut() -> R,
    ) -> io::Result<()> {
        match self.seconds(batch, routine) {
            Some(seconds) => {
                let rate = f64::from(batch.operations) / seconds / unit.operations();
                self.print(batch.name, rate, Unit::Rate(unit))
            }
            None => Ok(()),
        }
    }

    /// Returns the time of one run of `routine` in seconds, if its figure is selected.
    fn seconds<R>(&mut self, batch: Batch<'_>, mut routine: impl FnMut() -> R) -> Option<f64> {
        if !self.wants(batch.name) {
            return None;
        }
        let mut samples = Vec::new();
        self.sample(batch.name, |iterations| {
            let elapsed = elapsed(iterations, &mut routine);
            samples.push(per_iteration(elapsed, iterations));
            elapsed
        });
        Some(median_of_last(samples))
    }

    /// Prints the time of one operation of `ours`, and as `…/vs-BASELINE` the time of `theirs` divided by
    /// the time of `ours`.
    ///
    /// Each sample runs both routines, one after the other. The ratio compares the fastest sample of each
    /// routine, because other activity of the machine can only make a sample slower.
    ///
    /// # Errors
    /// Returns an error if stdout cannot be written.
    pub fn compare<R, S>(
        &mut self,
        batch: Batch<'_>,
        ours: impl FnMut() -> R,
        baseline: &str,
        theirs: impl FnMut() -> S,
    ) -> io::Result<()> {
        let ratio = format!("{}/vs-{baseline}", batch.name);
        self.both(batch, &ratio, ours, theirs, |[ours, theirs]| theirs / ours)
    }

    /// Prints the time of one operation of `ours`, and as `…/of-BASELINE` the time of `ours` divided by
    /// the time of `theirs`. Samples are taken as in [`Self::compare`].
    ///
    /// # Errors
    /// Returns an error if stdout cannot be written.
    pub fn cost<R, S>(
        &mut self,
        batch: Batch<'_>,
        ours: impl FnMut() -> R,
        baseline: &str,
        theirs: impl FnMut() -> S,
    ) -> io::Result<()> {
        let ratio = format!("{}/of-{baseline}", batch.name);
        self.both(batch, &ratio, ours, theirs, |[ours, theirs]| ours / theirs)
    }

    fn both<R, S>(
        &mut self,
        batch: Batch<'_>,
        name: &str,
        mut ours: impl FnMut() -> R,
        mut theirs: impl FnMut() -> S,
        ratio: impl FnOnce([f64; 2]) -> f64,
    ) -> io::Result<()> {
        if !self.wants(name) {
            return Ok(());
        }
        // The ratio uses the fastest sample of each routine: other activity of the machine can only
        // add time.
        let (mut times, mut least) = (Vec::new(), [f64::INFINITY; 2]);
        self.sample(batch.name, |iterations| {
            let elapsed_ours = elapsed(iterations, &mut ours);
            let elapsed_theirs = elapsed(iterations, &mut theirs);
            times.push(per_iteration(elapsed_ours, iterations));
            for (least, elapsed) in least.iter_mut().zip([elapsed_ours, elapsed_theirs]) {
                *least = least.min(per_iteration(elapsed, iterations));
            }
            elapsed_ours
        });
        if self.wants(batch.name) {
            self.print_time(batch, median_of_last(times), TimeUnit::Nanoseconds)?;
        }
        self.print(name, ratio(least), Unit::Times)
    }

    /// Runs `routine` under criterion, which first runs the routine to warm it up and then chooses
    /// how many iterations each sample has.
    fn sample(&mut self, name: &str, routine: impl FnMut(u64) -> Duration) {
        let routine = RefCell::new(routine);
        self.criterion
            .bench_function(name, |bencher: &mut Bencher<'_>| {
                bencher.iter_custom(|iterations| routine.borrow_mut()(iterations));
            });
    }

    /// Returns true if the argument of the bench selects a figure of this name.
    #[must_use]
    pub fn wants(&self, name: &str) -> bool {
        name.contains(&self.wanted)
    }

    fn print_time(&mut self, batch: Batch<'_>, seconds: f64, unit: TimeUnit) -> io::Result<()> {
        let value = seconds * unit.per_second() / f64::from(batch.operations);
        self.print(batch.name, value, Unit::Time(unit))
    }

    fn print(&mut self, name: &str, value: f64, unit: Unit) -> io::Result<()> {
        writeln!(self.out, "{name} {value:.2} {unit}")
    }
}

fn elapsed<R>(iterations: u64, routine: &mut impl FnMut() -> R) -> Duration {
    let start = Instant::now();
    for _ in 0..iterations {
        std::hint::black_box(routine());
    }
    start.elapsed()
}

/// Returns the time of one iteration in seconds.
#[expect(
    clippy::cast_precision_loss,
    reason = "nothing runs 2^53 times within a bench"
)]
fn per_iteration(elapsed: Duration, iterations: u64) -> f64 {
    elapsed.as_secs_f64() / iterations as f64
}

/// Returns the median of the last [`SAMPLES`] samples, or 0 if there are no samples. The samples before
/// these are from the warm-up.
fn median_of_last(mut samples: Vec<f64>) -> f64 {
    let mut samples = samples.split_off(samples.len().saturating_sub(SAMPLES));
    samples.sort_by(f64::total_cmp);
    samples.get(samples.len() / 2).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn median_of_last_ignores_warm_up_samples() {
        let warm_up = [1e9; 20];
        let samples: Vec<_> = warm_up.into_iter().chain((0..60).map(f64::from)).collect();
        assert!((median_of_last(samples) - 30.0).abs() < f64::EPSILON);
        assert!((median_of_last(vec![3.0, 1.0, 2.0]) - 2.0).abs() < f64::EPSILON);
        assert!(median_of_last(Vec::new()).abs() < f64::EPSILON);
    }
}
