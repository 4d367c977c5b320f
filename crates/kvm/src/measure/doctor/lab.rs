//! The VM in which a numbered statement is tried, and the operations that several statements need.

use kvm_bindings::{Msrs, kvm_msr_entry};
use msrgate_filter::{Access, Errno, ExitReason, MsrIndex, Verdict};

use super::Finding;
use super::request::{allow_all, deny_all};
use crate::errno::{CallErrno, RawErrno};
use crate::exit::{RawReason, RawReasons};
use crate::measure::guest::{Apic, Guest, GuestError, Op, RawExit, Stop, called};
use crate::measure::observed::{GuestOutcome, Observed, StepReply};
use crate::probe::{HostCaps, IgnoreMsrs};
use crate::sys::calls::enable_reasons;
use crate::sys::raw::{RawFilter, set_filter_raw};

/// MSRs that every KVM knows and that hold any value written to them.
pub(super) const STAR: MsrIndex = MsrIndex::new(0xc000_0081);
pub(super) const LSTAR: MsrIndex = MsrIndex::new(0xc000_0082);
pub(super) const CSTAR: MsrIndex = MsrIndex::new(0xc000_0083);
pub(super) const KERNEL_GS_BASE: MsrIndex = MsrIndex::new(0xc000_0102);
/// An MSR most of whose bits are reserved.
pub(super) const EFER: MsrIndex = MsrIndex::new(0xc000_0080);
pub(super) const TSC: MsrIndex = MsrIndex::new(0x10);
/// An MSR that no CPU has.
pub(super) const NOWHERE: MsrIndex = MsrIndex::new(0x1234_5678);

/// The mask of all exit reasons that mainline KVM has.
pub(super) const ALL_REASONS: RawReasons = RawReasons::new(7);

/// An access, and the verdict that the filter must give.
pub(super) type Expected = (MsrIndex, Access, Verdict);

/// The VM in which a numbered statement is tried.
pub(super) struct Lab {
    pub(super) host: HostCaps,
    pub(super) guest: Guest,
}

impl Lab {
    pub(super) fn new(host: &HostCaps) -> Result<Self, GuestError> {
        let guest = Guest::new(host, Apic::Absent)?;
        Ok(Self {
            host: host.clone(),
            guest,
        })
    }

    /// Creates another VM for the same statement, with an interrupt controller.
    pub(super) fn with_apic(&self) -> Result<Self, GuestError> {
        Ok(Self {
            host: self.host.clone(),
            guest: Guest::new(&self.host, Apic::X2apic)?,
        })
    }

    /// Returns the finding for a statement about MSRs that KVM does not know, if this host hides such MSRs
    /// (S10.1).
    pub(super) fn hides_unknown(&self) -> Option<Finding> {
        (self.host.ignore_msrs() == IgnoreMsrs::On).then_some(Finding::CannotBeShown {
            why: "this host has kvm.ignore_msrs=1, so an access of an unknown MSR does not fail (S10.1)",
        })
    }

    /// Sets the mask of exit reasons and returns the kernel's answer.
    pub(super) fn reasons(&self, mask: RawReasons) -> Result<(), CallErrno> {
        enable_reasons(self.guest.vm(), mask)
    }

    /// Sets the filter of the VM and returns the kernel's answer.
    pub(super) fn filter(&self, request: &RawFilter) -> Result<(), CallErrno> {
        set_filter_raw(self.guest.vm(), request)
    }

    /// Sets the mask of exit reasons and then the filter. Returns an error if the kernel refuses either of
    /// them.
    pub(super) fn guard(&self, request: &RawFilter, mask: RawReasons) -> Result<(), GuestError> {
        self.reasons(mask).map_err(failed("KVM_ENABLE_CAP"))?;
        self.filter(request)
            .map_err(failed("KVM_X86_SET_MSR_FILTER"))
    }

    /// Runs one access, and answers its exit with `reply`.
    pub(super) fn access(&mut self, op: Op, reply: StepReply) -> Result<Observed, GuestError> {
        Ok(self.guest.run(&[(op, reply)])?.remove(0))
    }

    /// Runs one access, and answers its exit with #GP.
    pub(super) fn try_access(&mut self, op: Op) -> Result<Observed, GuestError> {
        self.access(op, StepReply::Fault)
    }

    /// Returns the reason for which the access exits, under the mask that the VM has; `None` if the access
    /// does not exit.
    pub(super) fn reason(&mut self, op: Op) -> Result<Option<RawReason>, GuestError> {
        Ok(self.try_access(op)?.exit.map(|exit| exit.reason))
    }

    /// Checks the filter's verdict on each access, with exits enabled for all reasons.
    pub(super) fn verdicts(&mut self, expected: &[Expected]) -> Result<Finding, GuestError> {
        self.reasons(ALL_REASONS)
            .map_err(failed("KVM_ENABLE_CAP"))?;
        self.refusals(expected)
    }

    /// Checks the filter's verdict on each access, under the mask that the VM has. The mask must have all
    /// reasons: a denied access exits with the reason FILTER, and one that KVM refuses with another.
    pub(super) fn refusals(&mut self, expected: &[Expected]) -> Result<Finding, GuestError> {
        for &(index, access, wanted) in expected {
            let op = match access {
                Access::Read => Op::Read(index),
                Access::Write => Op::Write(index, 0),
            };
            let seen = self.try_access(op)?;
            let verdict = match (seen.exit.map(|exit| exit.reason), seen.outcome) {
                (Some(reason), _) if reason == ExitReason::Filter.into() => Some(Verdict::Deny),
                // Under this mask, KVM itself refuses no access without an exit.
                (None, GuestOutcome::Fault(_)) => None,
                _ => Some(Verdict::Allow),
            };
            if verdict != Some(wanted) {
                let seen = format!("the {access} of {index} is not {wanted:?}: {seen:?}");
                return Ok(Finding::Differs { seen });
            }
        }
        Ok(Finding::Holds)
    }

    /// Checks that reads and writes of `index` both have this verdict.
    pub(super) fn both(&mut self, index: MsrIndex, wanted: Verdict) -> Result<Finding, GuestError> {
        self.verdicts(&[
            (index, Access::Read, wanted),
            (index, Access::Write, wanted),
        ])
    }

    /// Checks that the kernel accepts a filter.
    pub(super) fn accepts(&self, what: &str, request: &RawFilter) -> Finding {
        Finding::compare(what, &self.filter(request), &Ok(()))
    }

    /// Checks that the kernel refuses a filter with `errno`.
    pub(super) fn refuses(&self, what: &str, request: &RawFilter, errno: Errno) -> Finding {
        let wanted = Err(CallErrno::Known(errno));
        Finding::compare(what, &self.filter(request), &wanted)
    }

    /// Runs `op` alone until it exits to user space, and leaves the exit pending.
    pub(super) fn stop_at(&mut self, op: Op) -> Result<RawExit, GuestError> {
        self.guest.load(&[op])?;
        match self.guest.resume()? {
            Stop::Msr(exit) => Ok(exit),
            stop => Err(self.left(&stop)),
        }
    }

    /// Runs `op` as [`Self::stop_at`] does, in a VM whose filter denies everything.
    pub(super) fn stop_refused(&mut self, op: Op) -> Result<RawExit, GuestError> {
        self.guard(&deny_all(), ALL_REASONS)?;
        self.stop_at(op)
    }

    /// Resumes the guest, which must reach the end of the script.
    pub(super) fn finish(&mut self) -> Result<(), GuestError> {
        match self.guest.resume()? {
            Stop::End => Ok(()),
            stop => Err(self.left(&stop)),
        }
    }

    /// Writes one register of the vCPU with `KVM_SET_MSRS`; returns the number of registers that the
    /// kernel has set: 1, or 0 if it refused the value.
    pub(super) fn host_write(&self, index: MsrIndex, data: u64) -> Result<usize, GuestError> {
        self.guest
            .vcpu()
            .set_msrs(&one_msr(index, data)?)
            .map_err(called("KVM_SET_MSRS"))
    }

    /// Reads one register of the vCPU with `KVM_GET_MSRS`; returns `None` if the kernel refused.
    pub(super) fn host_read(&self, index: MsrIndex) -> Result<Option<u64>, GuestError> {
        let mut entries = one_msr(index, 0)?;
        let vcpu = self.guest.vcpu();
        let count = vcpu
            .get_msrs(&mut entries)
            .map_err(called("KVM_GET_MSRS"))?;
        Ok(entries.as_slice()[..count].first().map(|entry| entry.data))
    }

    /// Allows every access and disables exits, whatever filter and mask were set before.
    pub(super) fn open(&self) -> Result<(), GuestError> {
        self.guard(&allow_all(), RawReasons::NONE)
    }

    pub(super) fn left(&self, stop: &Stop) -> GuestError {
        GuestError::Left {
            step: self.guest.step(),
            exit: stop.to_string(),
        }
    }
}

/// Returns a list of one MSR, as `KVM_GET_MSRS` and `KVM_SET_MSRS` take it. A list of one is never too
/// long.
fn one_msr(index: MsrIndex, data: u64) -> Result<Msrs, GuestError> {
    let entry = kvm_msr_entry {
        index: index.get(),
        data,
        ..kvm_msr_entry::default()
    };
    let too_long = RawErrno::new(libc::E2BIG).into();
    Msrs::from_entries(&[entry]).map_err(|_| failed("a list of one MSR")(too_long))
}

/// Returns a function that converts the error number of the system call `name`, which must succeed, to
/// an error.
pub(super) fn failed(name: &'static str) -> impl Fn(CallErrno) -> GuestError {
    move |errno| GuestError::Call { name, errno }
}
