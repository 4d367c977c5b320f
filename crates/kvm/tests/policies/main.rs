//! Random policies in the built-in guest, on the model and on KVM: the filter must deny an access (S5.2:
//! an exit with reason FILTER, or #GP) exactly if `explain` says so.
//!
//! `MSRGATE_SEED` repeats a run. If the test fails, it prints the smallest policy that still fails.

use std::thread;

use msrgate_filter::{Access, MsrIndex, Register, RegisterMap, Revision, Verdict};
use msrgate_kvm::HostCaps;
use msrgate_kvm::measure::{Backend, Case, KvmBackend, ModelBackend, WriteEffect, measure};
use msrgate_policy::{Compiled, Variant, explain, registers, test_points, write_effect};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;
use proptest::test_runner::TestCaseError;

use msrgate_testing::host::{host, say};
use msrgate_testing::random::{PolicyPlan, policy};
use msrgate_testing::seed::{runner, seed};

/// The number of policies that all workers try together.
const POLICIES: u32 = 1_002;

/// The number of threads, each with its own VMs: a call that sets a filter spends most of its time waiting.
const WORKERS: u32 = 6;

/// The number of MSRs that the guest accesses under each policy, in both directions.
const MSRS: usize = 24;

/// Counts of the policies and accesses that the test has tried, by kind.
#[derive(Clone, Copy, Debug, Default)]
struct Tally {
    entries: usize,
    overrides: usize,
    finals: usize,
    /// The number of policies that have different variants for different processors.
    by_cpu: usize,
    refused: usize,
    allowed: usize,
}

#[test]
fn guest_under_random_policy_gets_the_verdicts_of_explain() {
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
    let (overrides, finals) = (sum(|t| t.overrides), sum(|t| t.finals));
    let by_cpu = sum(|t| t.by_cpu);
    say(&format!(
        "{POLICIES} policies, {by_cpu} of them by processor, of {entries} entries, {overrides} overriding and {finals} final: {refused} accesses refused, {allowed} allowed"
    ));
    assert!(entries > 2_000 && refused > 10_000 && allowed > 10_000);
    assert!(overrides > 100 && finals > 100 && by_cpu > 100);
}

/// Tries this worker's share of the random policies.
fn work(host: Option<&HostCaps>, seed: u64, worker: u32) -> Result<Tally, String> {
    let mut backends: Vec<Box<dyn Backend>> = vec![Box::new(model())];
    if let Some(host) = host {
        let kernel = KvmBackend::new(host).map_err(|error| error.to_string())?;
        backends.push(Box::new(kernel));
    }
    let mut runner = runner(seed, worker);
    let strategy = (policy(), any::<Index>(), vec(any::<Index>(), MSRS));
    let mut total = Tally::default();
    for _ in 0..POLICIES / WORKERS {
        let tree = strategy
            .new_tree(&mut runner)
            .map_err(|reason| reason.to_string())?;
        let backends = std::cell::RefCell::new(&mut backends);
        let tally = std::cell::Cell::new(total);
        runner
            .run_one(tree, |(plan, cpu, picks)| {
                let done = holds(&mut backends.borrow_mut(), &plan, cpu, &picks)?;
                tally.set(tally.get().and(done));
                Ok(())
            })
            .map_err(|error| format!("seed {seed:#x}, worker {worker}: {error}"))?;
        total = tally.get();
    }
    Ok(total)
}

/// Returns a model in which every MSR that has a name exists, with the value 0.
fn model() -> ModelBackend<RegisterMap> {
    let registers = registers::all().iter();
    let registers = registers.map(|register| (register.index, Register::new(0)));
    ModelBackend::new(Revision::Mainline, registers.collect())
}

/// Compiles a policy, picks one of its variants, and checks the guest under that variant on each backend.
fn holds(
    backends: &mut [Box<dyn Backend>],
    plan: &PolicyPlan,
    cpu: Index,
    picks: &[Index],
) -> Result<Tally, TestCaseError> {
    let fail = |text: String| TestCaseError::fail(text);
    let drawn = plan.compile().map_err(|error| fail(error.to_string()))?;
    let compiled = &drawn.compiled;
    let variant = cpu.get(compiled.variants());
    let cases = cases(compiled, variant, picks);
    for backend in backends {
        let measured = measure(&mut **backend, variant.filter(), &cases)
            .map_err(|error| fail(error.to_string()))?;
        if let Some(row) = measured.iter().find(|row| !row.is_ok()) {
            return Err(fail(format!(
                "on {}: {row:?} on {} under\n{}",
                backend.kind(),
                variant.example(),
                drawn.text
            )));
        }
        prop_assert_eq!(measured.len(), 2 * cases.len());
    }
    let refused = cases.iter().filter(|case| case.expected == Verdict::Deny);
    let refused = refused.count();
    Ok(Tally {
        entries: compiled.policy().entries().len(),
        overrides: drawn.overrides,
        finals: drawn.finals,
        by_cpu: usize::from(compiled.variants().len() > 1),
        refused,
        allowed: cases.len() - refused,
    })
}

/// Returns a read and a write of each of some MSRs at which the policy's decision may change.
fn cases(compiled: &Compiled, variant: &Variant, picks: &[Index]) -> Vec<Case> {
    let points = test_points(compiled.policy(), variant);
    let mut picked: Vec<MsrIndex> = picks.iter().map(|pick| *pick.get(&points)).collect();
    picked.sort_unstable();
    picked.dedup();
    let both = |index| Access::ALL.map(|access| case(compiled, variant, index, access));
    picked.into_iter().flat_map(both).collect()
}

fn case(compiled: &Compiled, variant: &Variant, index: MsrIndex, access: Access) -> Case {
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
            overrides: self.overrides + other.overrides,
            finals: self.finals + other.finals,
            by_cpu: self.by_cpu + other.by_cpu,
            refused: self.refused + other.refused,
            allowed: self.allowed + other.allowed,
        }
    }
}
