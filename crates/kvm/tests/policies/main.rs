//! Random policies in the built-in guest, on the model and on KVM: every access is refused by the
//! filter (S5.2: an exit with reason FILTER, or #GP) where `explain` says so, and nowhere else.
//!
//! `MSRGATE_SEED` repeats a run; a failure prints the smallest policy that still shows it.

#[path = "../host/mod.rs"]
mod host;
#[path = "../seed/mod.rs"]
mod seed;
mod text;

use std::thread;

use msrgate_filter::{Access, MsrIndex, Register, RegisterMap, Revision, Verdict};
use msrgate_kvm::{Backend, Case, HostCaps, KvmBackend, ModelBackend, WriteEffect, measure};
use msrgate_policy::{Compiled, explain, points, registers, write_effect};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;
use proptest::test_runner::TestCaseError;

use crate::host::{host, say};
use crate::seed::{runner, seed};
use crate::text::{PolicyPlan, policy};

/// How many policies are tried, all workers together.
const POLICIES: u32 = 1_002;

/// Threads, each with VMs of its own: a set call mostly waits.
const WORKERS: u32 = 6;

/// How many MSRs of each policy are accessed, in both directions.
const MSRS: usize = 24;

/// What was done.
#[derive(Clone, Copy, Debug, Default)]
struct Tally {
    entries: usize,
    refused: usize,
    allowed: usize,
}

#[test]
fn random_policies_hold_in_a_guest() {
    let host = host();
    let seed = seed();
    say(&format!(
        "random policies, seed {seed:#x}: MSRGATE_SEED={seed:#x} repeats this run"
    ));
    let tallies: Vec<Tally> = thread::scope(|scope| {
        let host = host.as_ref();
        let spawn = |worker| scope.spawn(move || work(host, seed, worker));
        let workers: Vec<_> = (0..WORKERS).map(spawn).collect();
        let join = |worker: thread::ScopedJoinHandle<'_, Result<Tally, String>>| {
            let result = worker.join().expect("no worker panics");
            result.unwrap_or_else(|failure| panic!("{failure}"))
        };
        workers.into_iter().map(join).collect()
    });
    let sum = |part: fn(&Tally) -> usize| tallies.iter().map(part).sum::<usize>();
    let (entries, refused, allowed) = (sum(|t| t.entries), sum(|t| t.refused), sum(|t| t.allowed));
    say(&format!(
        "{POLICIES} policies of {entries} entries: {refused} accesses refused, {allowed} allowed"
    ));
    assert!(entries > 2_000 && refused > 10_000 && allowed > 10_000);
}

/// This worker's share of the policies.
fn work(host: Option<&HostCaps>, seed: u64, worker: u32) -> Result<Tally, String> {
    let mut backends: Vec<Box<dyn Backend>> = vec![Box::new(model())];
    if let Some(host) = host {
        let kernel = KvmBackend::new(host).map_err(|error| error.to_string())?;
        backends.push(Box::new(kernel));
    }
    let mut runner = runner(seed, worker);
    let strategy = (policy(), vec(any::<Index>(), MSRS));
    let mut total = Tally::default();
    for _ in 0..POLICIES / WORKERS {
        let tree = strategy
            .new_tree(&mut runner)
            .map_err(|reason| reason.to_string())?;
        let backends = std::cell::RefCell::new(&mut backends);
        let tally = std::cell::Cell::new(total);
        runner
            .run_one(tree, |(plan, picks)| {
                let done = holds(&mut backends.borrow_mut(), &plan, &picks)?;
                tally.set(tally.get().and(done));
                Ok(())
            })
            .map_err(|error| format!("seed {seed:#x}, worker {worker}: {error}"))?;
        total = tally.get();
    }
    Ok(total)
}

/// A machine that has every register with a name; all of them hold 0.
fn model() -> ModelBackend<RegisterMap> {
    let registers = registers::all().iter();
    let registers = registers.map(|register| (register.index, Register::new(0)));
    ModelBackend::new(Revision::Mainline, registers.collect())
}

/// Compiles a policy and runs a guest under it on each backend.
fn holds(
    backends: &mut [Box<dyn Backend>],
    plan: &PolicyPlan,
    picks: &[Index],
) -> Result<Tally, TestCaseError> {
    let fail = |text: String| TestCaseError::fail(text);
    let (text, compiled) = plan.compile().map_err(|error| fail(error.to_string()))?;
    let cases = cases(&compiled, picks);
    let filter = compiled.variants()[0].filter();
    for backend in backends {
        let measured =
            measure(&mut **backend, filter, &cases).map_err(|error| fail(error.to_string()))?;
        if let Some(row) = measured.iter().find(|row| !row.is_ok()) {
            return Err(fail(format!(
                "on {}: {row:?} under\n{text}",
                backend.kind()
            )));
        }
        prop_assert_eq!(measured.len(), 2 * cases.len());
    }
    let refused = cases.iter().filter(|case| case.expected == Verdict::Deny);
    let refused = refused.count();
    Ok(Tally {
        entries: compiled.policy().entries().len(),
        refused,
        allowed: cases.len() - refused,
    })
}

/// Both accesses of some of the MSRs at which the policy may change its mind.
fn cases(compiled: &Compiled, picks: &[Index]) -> Vec<Case> {
    let points = points(compiled.policy(), &compiled.variants()[0]);
    let mut picked: Vec<MsrIndex> = picks.iter().map(|pick| *pick.get(&points)).collect();
    picked.sort_unstable();
    picked.dedup();
    let both = |index| Access::ALL.map(|access| case(compiled, index, access));
    picked.into_iter().flat_map(both).collect()
}

fn case(compiled: &Compiled, index: MsrIndex, access: Access) -> Case {
    let variant = &compiled.variants()[0];
    Case {
        index,
        access,
        expected: explain(compiled.policy(), variant, index, access)
            .action
            .verdict(),
        effect: match write_effect(index) {
            Some(_) => WriteEffect::ActsAtOnce,
            None => WriteEffect::StoresOnly,
        },
    }
}

impl Tally {
    const fn and(self, other: Self) -> Self {
        Self {
            entries: self.entries + other.entries,
            refused: self.refused + other.refused,
            allowed: self.allowed + other.allowed,
        }
    }
}
