//! Comparison of the model with the kernel: both get the same random masks, filters and accesses, and
//! everything observable is compared. The comparison covers the result of each call that sets a mask or a
//! filter (S1.9, S2), the rule that a failed call keeps the old mask and filter (S2.7), and the verdict (S3)
//! and the outcome (S5) of each access.
//!
//! `MSRGATE_SEED` repeats a run. If the two differ, the test prints the shortest sequence of rounds that
//! still shows the difference.

mod linear;
mod pair;
mod registers;
mod requests;
mod sequence;
mod tally;

use std::cell::RefCell;
use std::rc::Rc;
use std::thread;

use msrgate_kvm::{HostCaps, UnknownBits};
use proptest::strategy::Strategy;
use proptest::test_runner::TestCaseError;

use crate::pair::{Difference, Pair};
use crate::registers::{Baseline, EXCEPTIONS};
use crate::sequence::{Round, rounds};
use crate::tally::Tally;
use msrgate_testing::host::{host, say};
use msrgate_testing::seed::{runner, seed};

/// The least number of calls that set a filter, and the least number of accesses, that all workers together
/// must compare.
const SET_CALLS: u32 = 5_000;
const ACCESSES: u32 = 200_000;

/// Returns the number by which both least numbers are divided on slow machines: the value of `MSRGATE_PART`,
/// 1 by default.
fn part() -> u32 {
    let part = std::env::var("MSRGATE_PART").ok();
    let part = part.map(|text| text.parse().expect("MSRGATE_PART is a number"));
    part.unwrap_or(1).max(1)
}

/// The number of threads, each with its own VMs: a call that sets a filter spends most of its time waiting.
/// The number is the same on every machine, so that a seed has the same meaning everywhere.
const WORKERS: u32 = 6;

#[test]
fn model_and_kernel_agree_on_random_masks_filters_and_accesses() {
    let Some(host) = host() else { return };
    if host.unknown_bits() == UnknownBits::Ignored {
        say("SKIPPED: this kernel takes unknown bits (S9); the model is of those that do not");
        return;
    }
    let seed = seed();
    say(&format!(
        "model against kernel, seed {seed:#x}: MSRGATE_SEED={seed:#x} repeats this run"
    ));
    for exception in EXCEPTIONS {
        say(&format!(
            "not compared: {}: {}",
            exception.index, exception.why
        ));
    }
    let tallies: Vec<Result<Tally, String>> = thread::scope(|scope| {
        let workers: Vec<_> = (0..WORKERS)
            .map(|number| {
                scope.spawn({
                    let host = &host;
                    move || work(host, seed, number)
                })
            })
            .collect();
        let join = |worker: thread::ScopedJoinHandle<'_, _>| {
            worker
                .join()
                .unwrap_or_else(|_| Err("a worker panicked".to_owned()))
        };
        workers.into_iter().map(join).collect()
    });
    let mut total = Tally::default();
    for tally in tallies {
        match tally {
            Ok(tally) => total = total.and(&tally),
            Err(failure) => panic!("{failure}"),
        }
    }
    say(&total.to_string());
    assert!(
        total.filters() >= SET_CALLS / part() && total.accesses() >= ACCESSES / part(),
        "{total}"
    );
    assert_eq!(total.lacks(part()), None, "{total}");
}

/// Compares pairs of VMs, one pair after the other, until this worker's share of the comparison is done.
fn work(host: &HostCaps, seed: u64, number: u32) -> Result<Tally, String> {
    let mut runner = runner(seed, number);
    let baseline = Baseline::new(host).map_err(|error| error.to_string())?;
    let baseline = Rc::new(RefCell::new(baseline));
    let tally = Tally::default();
    let strategy = rounds();
    let workers = WORKERS * part();
    while tally.filters() < SET_CALLS.div_ceil(workers)
        || tally.accesses() < ACCESSES.div_ceil(workers)
    {
        let life = strategy
            .new_tree(&mut runner)
            .map_err(|reason| reason.to_string())?;
        runner
            .run_one(life, |life| {
                live(host, &baseline, &life, &tally).map_err(TestCaseError::from)
            })
            .map_err(|error| format!("seed {seed:#x}, worker {number}: {error}"))?;
    }
    Ok(tally)
}

fn live(
    host: &HostCaps,
    baseline: &Rc<RefCell<Baseline>>,
    life: &[Round],
    tally: &Tally,
) -> Result<(), Difference> {
    let mut pair = Pair::new(host, baseline)?;
    life.iter().try_for_each(|round| pair.go(round, tally))
}
