//! The errors of a gate and of its vCPUs.

use std::error::Error;
use std::fmt;
use std::io;

use msrgate_filter::{Access, MsrIndex};
use msrgate_program::answer::{ResponderError, RestoreError};
use msrgate_program::{CompileError, Cpu, one_line};

use super::id::VcpuId;
use super::pass_requests::Closed;
use crate::errno::CallErrno;
use crate::exit::{RawReason, RawReasons};
use crate::install::InstallError;

/// The errors of the functions of [`Gate`](super::Gate).
#[derive(Debug)]
#[non_exhaustive]
pub enum GateError {
    /// The program has no variant for this processor, or needs more than a responder can do: the inner error
    /// says which.
    Responder(ResponderError),
    /// The filter needs more ranges than a filter of KVM may have. The filter has to refuse the accesses
    /// that the program denies, and also those that the program allows but logs or audits.
    Pack(CompileError),
    /// The program needs exits for these reasons, which the host's KVM does not support.
    Reasons(RawReasons),
    /// The program answers for MSRs that KVM does not know, and this host hides those MSRs:
    /// `kvm.ignore_msrs` is on (S10.1).
    IgnoreMsrs,
    /// The program answers for MSRs that KVM does not know, and `kvm.ignore_msrs`, which may hide those
    /// MSRs, cannot be read (S10.1).
    IgnoreMsrsNotSeen,
    /// The program's microcode device reads the guest's memory, which the gate was not given: see
    /// [`GateOptions::memory`](super::GateOptions::memory).
    NoMemory,
    /// The program names a handler that the VMM does not have. Perhaps the VMM has this handler under
    /// another name.
    NoHandler {
        /// The handler's name in the policy.
        name: Box<str>,
    },
    /// Events are to hold RIP, but this KVM does not put a vCPU's registers into `kvm_run`.
    NoSharedRegisters,
    /// The event queue that the options ask for is too long.
    Queue {
        /// The value of [`EventOptions::queue`](super::events::EventOptions::queue).
        asked: usize,
        /// The largest length that an event queue may have.
        most: usize,
    },
    /// The kernel refused the filter, or the mask of exit reasons.
    Install(InstallError),
    /// The gate is not installed in a VM, so no access is filtered.
    NotInstalled,
    /// The gate is in a VM already, so it cannot be installed again.
    InstalledTwice,
    /// Another gate of this process is installed in the VM, or a [`VcpuGate`](super::VcpuGate) of that gate
    /// still exists.
    OtherGate,
    /// The vCPU has a [`VcpuGate`](super::VcpuGate) already. Each of two `VcpuGate`s would know only some of
    /// the vCPU's pins.
    VcpuTwice {
        /// The number of the vCPU that was added twice.
        vcpu: VcpuId,
    },
    /// The VM's events have a reader already. Each of two readers would get only some of the events.
    EventsTaken,
    /// The CPUID has no leaf 0 or no leaf 1, which identify the processor.
    NoCpuid,
    /// The vCPU's CPUID describes another processor than that of the first vCPU.
    OtherCpu {
        /// The number of the vCPU whose processor differs.
        vcpu: VcpuId,
        /// The first vCPU's processor.
        chosen: Cpu,
        /// This vCPU's processor.
        seen: Cpu,
    },
    /// The vCPU was added before, with another CPUID than now.
    CpuidChanged {
        /// The number of the vCPU whose CPUID changed.
        vcpu: VcpuId,
    },
    /// The kernel gives the process no further file descriptor or thread.
    Io(io::Error),
}

impl fmt::Display for GateError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::IgnoreMsrsNotSeen => f.write_str("the policy answers for MSRs that KVM does not know, but the gate cannot read kvm.ignore_msrs, which may hide such MSRs: make /sys/module/kvm/parameters/ignore_msrs readable, or pass its value to HostCaps::with_ignore_msrs"),
            Self::Responder(error) => error.fmt(f),
Self::Pack(error) => write!(f, "the policy logs or audits more accesses than the gate's filter can hold: {error}"),
Self::Reasons(reasons) => write!(f, "this KVM does not support the exit reasons {reasons}, which the policy needs: run a newer kernel"),
Self::IgnoreMsrs => f.write_str("the policy answers for MSRs that KVM does not know, but this host has kvm.ignore_msrs=1, which hides such MSRs: write 0 to /sys/module/kvm/parameters/ignore_msrs"),
Self::NoMemory => f.write_str("the policy's microcode device accepts updates, which it reads from the guest's memory: give the gate that memory (GateOptions::memory), or write `update = \"ignore\"`"),
Self::NoHandler { name } => write!(f, "the policy names the handler \"{}\", which the VMM does not have: pass the name to GateOptions::handlers, or a device to GateOptions::device, or correct the name in the policy", one_line(name)),
Self::NoSharedRegisters => f.write_str("the options ask for RIP in events, but this KVM does not store registers in kvm_run (KVM_CAP_SYNC_REGS): set EventOptions::rip to Rip::Hidden"),
Self::Queue { asked, most } => write!(f, "a queue of {asked} events for each vCPU is too long: set EventOptions::queue to at most {most}"),
Self::Install(error) => error.fmt(f),
Self::NotInstalled => f.write_str("this gate is not installed in a VM, so no access is filtered: call Gate::install first"),
Self::InstalledTwice => f.write_str("this gate is already installed in a VM: make one gate for each VM"),
Self::OtherGate => f.write_str("this VM already has a gate: pass the program to that gate's Gate::replace, or drop that gate and its VcpuGates first"),
Self::VcpuTwice { vcpu } => write!(f, "vCPU {vcpu} already has a VcpuGate: keep it as long as the vCPU runs, and drop it before you add the vCPU again"),
Self::EventsTaken => f.write_str("the VM's events already have a reader: keep the reader that Gate::events returned, or drop it before you call Gate::events again"),
Self::NoCpuid => f.write_str("the vCPU's CPUID lacks leaf 0 or leaf 1: pass the gate the same CPUID as KVM_SET_CPUID2"),
Self::OtherCpu { vcpu, chosen, seen } => write!(f, "the CPUID of vCPU {vcpu} names the processor {seen}, but the gate has chosen the policy's variant for {chosen}: give all vCPUs of the VM the same processor"),
Self::CpuidChanged { vcpu } => write!(f, "the CPUID of vCPU {vcpu} differs from the one with which the vCPU was first added: pass the gate the same CPUID as KVM_SET_CPUID2, because KVM_GET_CPUID2 returns it changed"),
Self::Io(error) => error.fmt(f),
        }
    }
}

impl Error for GateError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Responder(error) => error.source(),
            Self::Pack(error) => Some(error),
            Self::Install(error) => error.source(),
            Self::Io(error) => error.source(),
            _ => None,
        }
    }
}

impl From<ResponderError> for GateError {
    fn from(error: ResponderError) -> Self {
        Self::Responder(error)
    }
}

impl From<CompileError> for GateError {
    fn from(error: CompileError) -> Self {
        Self::Pack(error)
    }
}

impl From<InstallError> for GateError {
    fn from(error: InstallError) -> Self {
        Self::Install(error)
    }
}

/// The reasons why the gate did not answer an exit as the policy says. If the VMM runs the vCPU again after
/// an error other than [`Self::Theirs`], the guest gets #GP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum AnswerError {
    /// The vCPU's last exit was not an MSR exit, or has been answered.
    NoExit,
    /// The exit has a reason that no kernel known to this crate gives.
    Reason(RawReason),
    /// A system call on the vCPU failed. The gate or a device made the call.
    Call(CallErrno),
    /// The kernel refused the filter with which the gate wanted to let the access through.
    Publish(CallErrno),
    /// The program lets KVM handle the access, and the kernel's filter has kept refusing the access for
    /// seconds: something other than the gate has set that filter.
    OtherFilter {
        /// The MSR of the access that the filter refuses.
        index: MsrIndex,
        /// The direction of the access that the filter refuses.
        access: Access,
    },
    /// The access needs another filter, and nothing will set that filter: the gate has been dropped, or its
    /// publisher, the thread that sets such filters, has panicked.
    Gone,
    /// The `VcpuGate` does not answer for this vCPU, or the vCPU was not reset.
    Vcpu(VcpuError),
    /// The policy does not deny the access. But the VMM's own filter denies the access, or KVM itself
    /// refuses it, and the VMM's own mask asks for the exit. The gate has not answered the exit: the VMM has
    /// to answer it. This error comes only after [`Gate::set_beside`](super::Gate::set_beside).
    Theirs,
    /// The handler request is of another vCPU, or the exit of the request no longer waits for a reply: the
    /// exit has been answered, KVM has completed it, or a reset has made KVM forget it.
    Stale,
}

impl fmt::Display for AnswerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoExit => f.write_str("the vCPU has no MSR exit that waits for an answer"),
            Self::Reason(reason) => write!(f, "the exit has an unknown reason: {reason}"),
            Self::Call(errno) => write!(f, "a call on the vCPU failed: {errno}"),
            Self::Publish(errno) => write!(f, "the kernel's filter cannot be changed: {errno}"),
            Self::OtherFilter { index, access } => write!(
                f,
                "the kernel keeps refusing a {access} of MSR {index} that the policy allows: other code has set the VM's filter, so let only the gate set it"
            ),
            Self::Gone => f.write_str("the gate of this VM was dropped: keep the Gate as long as the vCPUs run"),
            Self::Vcpu(error) => error.fmt(f),
            Self::Theirs => {
                f.write_str("the exit comes from the VMM's own filter or reason mask, so the VMM has to answer it")
            }
            Self::Stale => f.write_str("the exit that this answer belongs to was already answered, or no longer exists"),
        }
    }
}

impl Error for AnswerError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Vcpu(error) => error.source(),
            _ => None,
        }
    }
}

impl From<VcpuError> for AnswerError {
    fn from(error: VcpuError) -> Self {
        Self::Vcpu(error)
    }
}

/// The reasons why a vCPU's state was not saved or restored.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum StateError {
    /// The bytes are not a saved state, or they hold a state that the program cannot take over. No part of
    /// the vCPU's state was restored.
    Restore(RestoreError),
    /// The vCPU's last exit has not been answered: the guest's access is neither done nor refused.
    Unanswered,
    /// The `VcpuGate` does not answer for this vCPU, or the vCPU was not reset.
    Vcpu(VcpuError),
    /// KVM refused to set an MSR of the vCPU to a saved value.
    Register {
        /// The MSR that KVM refused to set.
        index: MsrIndex,
        /// The saved value that KVM refused.
        value: u64,
    },
    /// A system call on the vCPU failed. The gate or a device made the call.
    Call(CallErrno),
}

impl fmt::Display for StateError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Restore(error) => error.fmt(f),
            Self::Unanswered => f.write_str(
                "an MSR exit of the vCPU still waits for its answer: answer the exit first",
            ),
            Self::Vcpu(error) => error.fmt(f),
            Self::Register { index, value } => write!(
                f,
                "KVM refuses the value {value:#x} for MSR {index}: give the vCPUs the same CPUID on both hosts, and capture only MSRs that the older kernel has, too"
            ),
            Self::Call(errno) => write!(f, "a call on the vCPU failed: {errno}"),
        }
    }
}

impl Error for StateError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Restore(error) => error.source(),
            Self::Vcpu(error) => error.source(),
            _ => None,
        }
    }
}

impl From<RestoreError> for StateError {
    fn from(error: RestoreError) -> Self {
        Self::Restore(error)
    }
}

impl From<VcpuError> for StateError {
    fn from(error: VcpuError) -> Self {
        Self::Vcpu(error)
    }
}

/// The reasons why a [`VcpuGate`](super::VcpuGate) refuses a call for the vCPU that it was given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum VcpuError {
    /// The vCPU was neither reset nor restored, or the last reset or restore failed.
    NotReset {
        /// The number of the vCPU that was not reset.
        vcpu: VcpuId,
    },
    /// The vCPU is not the one that this `VcpuGate` first reset or restored. The vCPU may be of another VM.
    OtherVcpu {
        /// The number of the vCPU for which the `VcpuGate` was made.
        vcpu: VcpuId,
    },
    /// KVM has no CPUID for the vCPU yet, or one that differs in a part that the gate relies on.
    OtherCpuid {
        /// The number of the vCPU whose CPUID is missing or differs.
        vcpu: VcpuId,
    },
    /// Another [`VcpuGate`](super::VcpuGate) answers for this KVM vCPU already. Each of the two `VcpuGate`s
    /// would know only some of the pins that the guest has set.
    TiedTwice {
        /// The number of the `VcpuGate` whose call is refused.
        vcpu: VcpuId,
        /// The number of the `VcpuGate` that answers for the vCPU.
        other: VcpuId,
    },
    /// The vCPU has not run since its state was restored, and this call would undo the restore.
    Restored {
        /// The number of the vCPU that was restored.
        vcpu: VcpuId,
    },
}

impl fmt::Display for VcpuError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotReset { vcpu } => write!(
                f,
                "vCPU {vcpu} was not reset: call VcpuGate::reset or restore before the vCPU first runs"
            ),
            Self::OtherVcpu { vcpu } => write!(
                f,
                "the VcpuGate of vCPU {vcpu} was first reset with another vCPU: pass the file descriptor and shared page of that vCPU, and use one VcpuGate for each vCPU"
            ),
            Self::OtherCpuid { vcpu } => write!(
                f,
                "the CPUID in KVM of vCPU {vcpu} is missing, or differs from the one that was passed to Gate::vcpu: pass the same CPUID to KVM_SET_CPUID2 before VcpuGate::reset"
            ),
            Self::TiedTwice { vcpu, other } => write!(
                f,
                "the VcpuGate of vCPU {vcpu} got the file descriptor and page of vCPU {other}, which has a VcpuGate of its own: use one VcpuGate for each vCPU, and drop the old one before a vCPU gets another number"
            ),
            Self::Restored { vcpu } => write!(
                f,
                "a reset of vCPU {vcpu} would undo the pins and registers of VcpuGate::restore, after which the vCPU has not run: call restore last, or make a new VcpuGate for a vCPU that starts anew"
            ),
        }
    }
}

impl Error for VcpuError {}

impl From<Closed> for AnswerError {
    fn from(closed: Closed) -> Self {
        match closed {
            Closed::Refused(errno) => Self::Publish(errno),
            Closed::Over => Self::Gone,
        }
    }
}

impl From<CallErrno> for AnswerError {
    fn from(errno: CallErrno) -> Self {
        Self::Call(errno)
    }
}

impl From<CallErrno> for StateError {
    fn from(errno: CallErrno) -> Self {
        Self::Call(errno)
    }
}
