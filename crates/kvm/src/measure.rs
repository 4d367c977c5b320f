//! Measurements of what a guest gets under a filter, compared with the verdicts that the filter should give.
//!
//! [`measure`](measure()) makes three passes over the same accesses, in one VM:
//!
//! 1. *baseline*: no filter. This pass finds the value that each MSR reads as, and the accesses that KVM
//!    itself refuses.
//! 2. [`Pass::Exits`]: the filter, and exits for every reason. A denied access exits with reason FILTER;
//!    an allowed access never does.
//! 3. [`Pass::Faults`]: the filter, and no exits. A denied access raises #GP at the RDMSR or WRMSR.

mod backend;
mod changeable;
mod doctor;
pub(crate) mod guest;
mod machine_checks;
mod model;
mod observed;
mod supported;

use std::collections::BTreeMap;
use std::error::Error;
use std::fmt;

use msrgate_filter::{
    Access, Because, ExitReason, Filter, MsrIndex, ReasonMask, Revision, Verdict,
};
use msrgate_program::one_line;

use crate::errno::CallErrno;
use crate::exit::RawReasons;
use crate::sys::raw::{RawFilter, raw_filter};

pub use backend::{Backend, BackendKind, KvmBackend};
pub use changeable::changeable;
pub use doctor::{Finding, Statement, statements};
pub use guest::{GuestError, StepAt};
pub use model::ModelBackend;
pub use observed::{
    Fault, GuestOutcome, GuestRegisters, Observed, SeenExit, Site, Step, StepReply,
};
pub use supported::{CpuidLeaf, Supported};

/// An access whose result the measurement observes, with the verdict that the filter should give.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Case {
    /// The MSR that the guest accesses.
    pub index: MsrIndex,
    /// The direction of the access.
    pub access: Access,
    /// The verdict that the filter should give on the access.
    pub expected: Verdict,
    /// The effect of a write. This field matters only if the access is a write that the filter allows.
    pub effect: WriteEffect,
}

/// The effect that a write has, apart from storing its value. For a read this value has no meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WriteEffect {
    /// The write only stores its value. So the measurement may write back the value that it has read: the
    /// write changes nothing.
    StoresOnly,
    /// The write has an effect at once. So the measurement makes no such write where the filter allows it.
    ActsAtOnce,
}

/// The pass of the measurement, which says if exit reasons are enabled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Pass {
    /// The pass with all exit reasons enabled: a refused access exits to user space.
    Exits,
    /// The pass with no exit reason enabled: a refused access is a #GP.
    Faults,
}

/// The observed result of an access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    /// The access was a read, which returned this value.
    Value(u64),
    /// The access was a write, which completed.
    Written,
    /// The access exited to user space with this reason; `None` stands for several bits, an unknown bit or
    /// 0 (S5.2).
    Exit(Option<ExitReason>),
    /// The access raised #GP.
    Fault,
    /// The guest did not make the access, for this reason.
    NotTried(NotTried),
}

/// The reason why an allowed write was not tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotTried {
    /// The write has an effect at once, beyond storing its value.
    ActsAtOnce,
    /// Reading the MSR fails, so there is no value to write back.
    Unreadable,
}

/// The result of measuring one access in one pass.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Measured {
    /// The access that was measured.
    pub case: Case,
    /// The pass in which the access was measured.
    pub pass: Pass,
    /// The result that the access had.
    pub seen: Seen,
    /// The reason for which KVM itself refuses the access, whatever the filter says, as seen in
    /// [`Pass::Exits`]; `None` if KVM itself allows the access.
    pub own_fault: Option<ExitReason>,
    /// The observations of this access that contradict a statement about KVM or the expected verdict;
    /// empty if the result is as it should be.
    pub deviations: Vec<Deviation>,
}

impl Measured {
    /// Returns true if no observation of this access contradicts what was expected.
    #[must_use]
    pub fn is_ok(&self) -> bool {
        self.deviations.is_empty()
    }
}

/// An observation that contradicts a statement of `docs/kvm-semantics.md`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Deviation {
    /// The number of the contradicted statement in `docs/kvm-semantics.md`, such as `S5.2`.
    pub statement: &'static str,
    /// A description of the observation.
    pub seen: String,
}

impl fmt::Display for Deviation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.statement, one_line(&self.seen))
    }
}

/// The reason why a measurement could not be made.
#[derive(Debug)]
#[non_exhaustive]
pub enum MeasureError {
    /// The built-in guest could not be run.
    Guest(GuestError),
    /// The kernel refused the filter with this error number.
    SetFilter(CallErrno),
    /// The kernel refused the mask of exit reasons with this error number.
    SetReasons(CallErrno),
}

impl fmt::Display for MeasureError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Guest(error) => error.fmt(f),
            Self::SetFilter(errno) => write!(f, "the kernel refuses the filter: {errno}"),
            Self::SetReasons(errno) => write!(f, "the kernel refuses to enable MSR exits: {errno}"),
        }
    }
}

impl Error for MeasureError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Guest(error) => error.source(),
            _ => None,
        }
    }
}

impl From<GuestError> for MeasureError {
    fn from(error: GuestError) -> Self {
        Self::Guest(error)
    }
}

/// Measures all cases in both passes. The result has all cases of [`Pass::Exits`] first, then all cases of
/// [`Pass::Faults`], each in the order of `cases`.
///
/// # Errors
/// Returns an error if the guest could not be run, or if the filter or the mask could not be set. After an
/// error no results are returned.
pub fn measure(
    backend: &mut dyn Backend,
    filter: &Filter,
    cases: &[Case],
) -> Result<Vec<Measured>, MeasureError> {
    let baseline = baseline(backend, cases)?;
    let plans: Vec<Plan> = cases
        .iter()
        .map(|&case| Plan::new(case, &baseline))
        .collect();
    let request = raw_filter(filter);
    let mut measured = Vec::with_capacity(cases.len() * 2);
    for (pass, mask) in [
        (Pass::Exits, every_reason()),
        (Pass::Faults, RawReasons::NONE),
    ] {
        backend
            .set_reasons(mask)
            .map_err(MeasureError::SetReasons)?;
        backend
            .set_filter(&request)
            .map_err(MeasureError::SetFilter)?;
        let steps: Vec<Step> = plans.iter().filter_map(Plan::step).collect();
        let mut observed = backend.run(&steps)?.into_iter();
        for (number, plan) in plans.iter().enumerate() {
            let seen = match plan.write {
                Err(why) => Ok(Seen::NotTried(why)),
                Ok(_) => Err(observed.next()),
            };
            let mut row = plan.row(pass, filter, seen);
            if pass == Pass::Faults {
                row.compare(&measured[number]);
            }
            measured.push(row);
        }
    }
    Ok(measured)
}

fn every_reason() -> RawReasons {
    ReasonMask::of(Revision::Mainline, &ExitReason::ALL).into()
}

/// Reads each MSR without a filter. The result has `None` for an MSR whose read KVM itself refuses.
fn baseline(backend: &mut dyn Backend, cases: &[Case]) -> Result<Baseline, MeasureError> {
    backend
        .set_reasons(every_reason())
        .map_err(MeasureError::SetReasons)?;
    backend
        .set_filter(&RawFilter::default())
        .map_err(MeasureError::SetFilter)?;
    let indices: std::collections::BTreeSet<_> = cases.iter().map(|case| case.index).collect();
    let steps: Vec<_> = indices
        .iter()
        .map(|&index| step(index, Access::Read, 0))
        .collect();
    let observed = backend.run(&steps)?;
    let value = |seen: &Observed| match seen.outcome {
        GuestOutcome::Value(value) => Some(value),
        GuestOutcome::Written | GuestOutcome::Fault(_) => None,
    };
    Ok(indices
        .into_iter()
        .zip(observed.iter().map(value))
        .collect())
}

type Baseline = BTreeMap<MsrIndex, Option<u64>>;

fn step(index: MsrIndex, access: Access, value: u64) -> Step {
    Step {
        index,
        access,
        value,
        reply: StepReply::Fault,
    }
}

/// A case, with the value to write, or with the reason why the write is not tried.
struct Plan {
    case: Case,
    write: Result<u64, NotTried>,
}

impl Plan {
    fn new(case: Case, baseline: &Baseline) -> Self {
        let value = baseline.get(&case.index).copied().flatten();
        let write = match (case.access, case.expected, case.effect, value) {
            (Access::Read, ..) => Ok(0),
            // A denied write has no effect, so any value may be tried.
            (_, Verdict::Deny, _, value) => Ok(value.unwrap_or(0)),
            (_, _, WriteEffect::ActsAtOnce, _) => Err(NotTried::ActsAtOnce),
            (_, _, _, None) => Err(NotTried::Unreadable),
            (_, _, _, Some(value)) => Ok(value),
        };
        Self { case, write }
    }

    fn step(&self) -> Option<Step> {
        let value = self.write.ok()?;
        Some(step(self.case.index, self.case.access, value))
    }

    fn row(&self, pass: Pass, filter: &Filter, seen: Result<Seen, Option<Observed>>) -> Measured {
        let mut row = Measured {
            case: self.case,
            pass,
            seen: Seen::Fault,
            own_fault: None,
            deviations: Vec::new(),
        };
        match seen {
            Ok(not_tried) => row.seen = not_tried,
            Err(None) => row.deviate("S5.4", "the guest did not report the access".to_owned()),
            Err(Some(observed)) => {
                row.look(&observed);
                row.judge(
                    &observed,
                    statement_of(filter, self.case),
                    self.write.unwrap_or(0),
                );
            }
        }
        row
    }
}

/// Returns the number of the statement of `docs/kvm-semantics.md` that the kernel breaks if it does not
/// decide this access as `filter` does.
fn statement_of(filter: &Filter, case: Case) -> &'static str {
    match filter.decide(case.index, case.access).because {
        Because::X2apic => "S3.1",
        Because::NoFilter => "S3.2",
        Because::Range(_) => "S3.3",
        Because::Default => "S3.4",
    }
}

impl Measured {
    fn deviate(&mut self, statement: &'static str, seen: String) {
        self.deviations.push(Deviation { statement, seen });
    }

    fn look(&mut self, observed: &Observed) {
        self.seen = match (observed.exit, observed.outcome) {
            (Some(exit), _) => Seen::Exit(exit.reason.known()),
            (None, GuestOutcome::Value(value)) => Seen::Value(value),
            (None, GuestOutcome::Written) => Seen::Written,
            (None, GuestOutcome::Fault(_)) => Seen::Fault,
        };
        if let Seen::Exit(Some(own @ (ExitReason::Unknown | ExitReason::Invalid))) = self.seen {
            self.own_fault = Some(own);
        }
    }

    fn judge(&mut self, observed: &Observed, statement: &'static str, value: u64) {
        let (expected, pass, seen) = (self.case.expected, self.pass, self.seen);
        match (expected, pass, seen) {
            (_, Pass::Faults, Seen::Exit(_)) => {
                self.deviate(
                    "S5.2",
                    "the access exits, although the reason mask asks for no exits".to_owned(),
                );
            }
            (_, _, Seen::Exit(None)) => {
                self.deviate(
                    "S5.2",
                    "the access exits with no reason, or with several".to_owned(),
                );
            }
            (Verdict::Allow, _, Seen::Exit(Some(ExitReason::Filter))) => {
                self.deviate(statement, "the filter refused the access".to_owned());
            }
            (Verdict::Deny, _, Seen::Value(_) | Seen::Written) => {
                self.deviate(statement, "the filter let the access pass".to_owned());
            }
            (
                Verdict::Deny,
                _,
                Seen::Exit(Some(reason @ (ExitReason::Unknown | ExitReason::Invalid))),
            ) => {
                self.deviate(
                    "S5.1",
                    format!("KVM looked at the MSR before the filter: reason {reason}"),
                );
            }
            (Verdict::Deny, Pass::Exits, Seen::Fault) => {
                self.deviate(
                    "S5.2",
                    "the access gets #GP without an exit, although the reason mask asks for an exit".to_owned(),
                );
            }
            _ => {}
        }
        if let Some(exit) = observed.exit {
            self.judge_exit(&exit, value);
        }
        if let GuestOutcome::Fault(fault) = observed.outcome {
            if let Site::Elsewhere(rip) = fault.site {
                self.deviate(
                    "S5.7",
                    format!("the access gets #GP with RIP {rip:#x}, which is not the instruction"),
                );
            }
            if fault.code != 0 {
                self.deviate(
                    "S5.7",
                    format!("the access gets #GP with error code {:#x}", fault.code),
                );
            }
            if fault.registers != GuestRegisters::Untouched {
                self.deviate(
                    "S5.4",
                    "the access gets #GP, but registers changed".to_owned(),
                );
            }
        } else if observed.exit.is_some() {
            self.deviate(
                "S5.4",
                "the access gets no #GP, although user space answered with an error".to_owned(),
            );
        }
    }

    /// Checks the fields of `struct kvm_run` at an exit (S5.3). `value` is the value of a write.
    fn judge_exit(&mut self, exit: &SeenExit, value: u64) {
        let data = match self.case.access {
            Access::Read => 0,
            Access::Write => value,
        };
        if (exit.index, exit.access) != (self.case.index, self.case.access) {
            let seen = format!("the exit names a {} of {}", exit.access, exit.index);
            self.deviate("S5.3", seen);
        }
        if exit.data != data {
            self.deviate(
                "S5.3",
                format!(
                    "the exit has the data {:#x} instead of {data:#x}",
                    exit.data
                ),
            );
        }
        if let Site::Elsewhere(rip) = exit.site {
            self.deviate(
                "S5.3",
                format!("RIP is {rip:#x} at the exit, not at the instruction"),
            );
        }
        if exit.registers != GuestRegisters::Untouched {
            self.deviate("S5.3", "registers are changed at the exit".to_owned());
        }
    }

    /// Compares this result with `exits`, the result of the pass with exits: an allowed access must have
    /// the same result in both passes (S5.2).
    fn compare(&mut self, exits: &Self) {
        self.own_fault = exits.own_fault;
        if self.case.expected == Verdict::Deny {
            return;
        }
        let before = matches!(exits.seen, Seen::Value(_) | Seen::Written);
        let now = matches!(self.seen, Seen::Value(_) | Seen::Written);
        match (before, now) {
            (true, false) if self.seen == Seen::Fault => {
                self.deviate(
                    "S5.2",
                    "the access gets #GP when the reason mask asks for no exits".to_owned(),
                );
            }
            (false, true) => {
                self.deviate(
                    "S5.2",
                    "the access passes when the reason mask asks for no exits".to_owned(),
                );
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests;
