//! Counts of everything that was compared, by kind. If a run compares too little of a kind, it must not
//! pass.

use std::cell::Cell;
use std::fmt;

use msrgate_filter::{Errno, ExitReason};
use msrgate_kvm::CallErrno;
use msrgate_kvm::measure::{GuestOutcome, Observed};

/// The kind of a result: a filter, a mask or an access, with the kernel's reaction to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    FilterTaken,
    FilterInvalid,
    FilterUnreadable,
    MaskTaken,
    MaskInvalid,
    ReadByKvm,
    WrittenByKvm,
    ReadByUser,
    WrittenByUser,
    FaultByUser,
    FaultByKvm,
    ExitFilter,
    ExitUnknown,
    ExitInvalid,
}

use Kind::{
    ExitFilter, ExitInvalid, ExitUnknown, FaultByKvm, FaultByUser, FilterInvalid, FilterTaken,
    FilterUnreadable, MaskInvalid, MaskTaken, ReadByKvm, ReadByUser, WrittenByKvm, WrittenByUser,
};

/// Each kind with its name, and the least number of comparisons of that kind in a run.
const KINDS: [(Kind, &str, u32); 14] = [
    (FilterTaken, "filters taken", 2_500),
    (FilterInvalid, "filters refused with EINVAL", 400),
    (FilterUnreadable, "filters refused with EFAULT", 200),
    (MaskTaken, "masks taken", 2_000),
    (MaskInvalid, "masks refused with EINVAL", 200),
    (ReadByKvm, "reads by KVM", 10_000),
    (WrittenByKvm, "writes by KVM", 5_000),
    (ReadByUser, "reads answered by user space", 10_000),
    (WrittenByUser, "writes answered by user space", 10_000),
    (FaultByUser, "#GPs by user space", 10_000),
    (FaultByKvm, "#GPs by KVM", 10_000),
    (ExitFilter, "exits with reason filter", 10_000),
    (ExitUnknown, "exits with reason unknown", 5_000),
    (ExitInvalid, "exits with reason invalid", 500),
];

/// One counter for each kind.
#[derive(Debug, Default)]
pub(crate) struct Tally([Cell<u32>; KINDS.len()]);

impl Tally {
    pub(crate) fn count_filter(&self, answer: Result<(), CallErrno>) {
        self.add(match answer {
            Ok(()) => FilterTaken,
            Err(CallErrno::Known(Errno::Efault)) => FilterUnreadable,
            Err(_) => FilterInvalid,
        });
    }

    pub(crate) fn count_reasons(&self, answer: Result<(), CallErrno>) {
        self.add(match answer {
            Ok(()) => MaskTaken,
            Err(_) => MaskInvalid,
        });
    }

    pub(crate) fn count_access(&self, observed: &Observed) {
        self.add(match (observed.outcome, observed.exit) {
            (GuestOutcome::Value(_), None) => ReadByKvm,
            (GuestOutcome::Written, None) => WrittenByKvm,
            (GuestOutcome::Fault(_), None) => FaultByKvm,
            (GuestOutcome::Value(_), Some(_)) => ReadByUser,
            (GuestOutcome::Written, Some(_)) => WrittenByUser,
            (GuestOutcome::Fault(_), Some(_)) => FaultByUser,
        });
        match observed.exit.and_then(|exit| exit.reason.known()) {
            Some(ExitReason::Filter) => self.add(ExitFilter),
            Some(ExitReason::Unknown) => self.add(ExitUnknown),
            Some(ExitReason::Invalid) => self.add(ExitInvalid),
            None => {}
        }
    }

    /// The number of calls of `KVM_X86_SET_MSR_FILTER`.
    pub(crate) fn filters(&self) -> u32 {
        self.sum(&[FilterTaken, FilterInvalid, FilterUnreadable])
    }

    /// The number of RDMSRs and WRMSRs.
    pub(crate) fn accesses(&self) -> u32 {
        self.sum(&[
            ReadByKvm,
            WrittenByKvm,
            ReadByUser,
            WrittenByUser,
            FaultByUser,
            FaultByKvm,
        ])
    }

    /// Adds the counts of `other` to those of `self`.
    pub(crate) fn and(self, other: &Self) -> Self {
        for (count, more) in self.0.iter().zip(&other.0) {
            count.set(count.get() + more.get());
        }
        self
    }

    /// Returns the name of the first kind whose count is below its least number, divided by `part`.
    pub(crate) fn lacks(&self, part: u32) -> Option<&'static str> {
        let lacking = KINDS
            .iter()
            .find(|&&(kind, _, least)| self.sum(&[kind]) < least / part);
        lacking.map(|&(_, name, _)| name)
    }

    fn add(&self, kind: Kind) {
        let count = &self.0[kind as usize];
        count.set(count.get() + 1);
    }

    fn sum(&self, kinds: &[Kind]) -> u32 {
        kinds.iter().map(|&kind| self.0[kind as usize].get()).sum()
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (filters, accesses) = (self.filters(), self.accesses());
        write!(f, "{filters} set calls and {accesses} accesses compared")?;
        for (kind, name, _) in KINDS {
            write!(f, "\n{:>8} {name}", self.sum(&[kind]))?;
        }
        Ok(())
    }
}
