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

/// The errors of [`Gate`](super::Gate)'s calls.
#[derive(Debug)]
#[non_exhaustive]
pub enum GateError {
    /// The program has no variant for this processor, or cannot be carried out: the error says why.
    Responder(ResponderError),
    /// The filter needs more ranges than KVM has. The filter has to refuse the accesses that the program
    /// denies, and also those that the program allows but logs or audits.
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
    /// The program names a handler that the VMM does not have. The VMM may have it under another name.
    NoHandler {
        /// The handler's name in the policy.
        name: Box<str>,
    },
    /// Events are to hold RIP, but this KVM does not put a vCPU's registers into `kvm_run`.
    NoSharedRegisters,
    /// The event queue is too long.
    Queue {
        /// The value of [`EventOptions::queue`](super::events::EventOptions::queue).
        asked: usize,
        /// The largest value that is allowed.
        most: usize,
    },
    /// The kernel refused the filter, or the mask of exit reasons.
    Install(InstallError),
    /// The gate is not installed in a VM, so no access is filtered.
    NotInstalled,
    /// The gate is in a VM already, so it cannot be installed again.
    InstalledTwice,
    /// Another gate, or a [`VcpuGate`](super::VcpuGate) of another gate, is in the VM.
    OtherGate,
    /// The vCPU has a [`VcpuGate`](super::VcpuGate) already. Each of two would know only some of the
    /// vCPU's pins.
    VcpuTwice {
        /// The vCPU.
        vcpu: VcpuId,
    },
    /// The VM's events have a reader already. Each of two would get only some of the events.
    EventsTaken,
    /// The CPUID has no leaf 0 or no leaf 1, which identify the processor.
    NoCpuid,
    /// The vCPU has another processor than the first vCPU.
    OtherCpu {
        /// The vCPU.
        vcpu: VcpuId,
        /// The first vCPU's processor.
        chosen: Cpu,
        /// This vCPU's processor.
        seen: Cpu,
    },
    /// The vCPU was added before, with another CPUID than now.
    CpuidChanged {
        /// The vCPU.
        vcpu: VcpuId,
    },
    /// The process has no file descriptor or no thread left.
    Io(io::Error),
}

impl fmt::Display for GateError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::IgnoreMsrsNotSeen => f.write_str("the policy answers for MSRs that KVM does not know, and kvm.ignore_msrs, which may hide them, cannot be read: make /sys/module/kvm/parameters/ignore_msrs readable, or tell by HostCaps::with_ignore_msrs"),
            Self::Responder(error) => error.fmt(f),
Self::Pack(error) => write!(f, "the accesses that the policy logs or audits do not fit a filter: {error}"),
Self::Reasons(reasons) => write!(f, "this KVM has no exits for the reasons {reasons}, which the policy needs: run a newer kernel"),
Self::IgnoreMsrs => f.write_str("the policy answers for MSRs that KVM does not know, and this host has kvm.ignore_msrs=1, which hides them: write 0 to /sys/module/kvm/parameters/ignore_msrs"),
Self::NoMemory => f.write_str("the policy's microcode device accepts updates, which it reads from the guest's memory: give the gate that memory (GateOptions::memory), or write `update = \"ignore\"`"),
Self::NoHandler { name } => write!(f, "the policy has handler = \"{}\", for which the VMM has no code: give the gate its name by GateOptions::handlers, or a device by GateOptions::device, or correct the name in the policy", one_line(name)),
Self::NoSharedRegisters => f.write_str("events are to hold RIP, and this KVM puts no registers into kvm_run"),
Self::Queue { asked, most } => write!(f, "a queue of {asked} events for each vCPU is too long: EventOptions::queue may be {most} at most"),
Self::Install(error) => error.fmt(f),
Self::NotInstalled => f.write_str("this gate is not installed in a VM, so that nothing is filtered: call Gate::install first"),
Self::InstalledTwice => f.write_str("this gate is in a VM already: make one for each VM"),
Self::OtherGate => f.write_str("this VM has a gate already: give that one the program by Gate::replace, or drop it and its VcpuGates first"),
Self::VcpuTwice { vcpu } => write!(f, "vCPU {vcpu} has a VcpuGate already: keep that one as long as the vCPU runs, and drop it before the vCPU is added again"),
Self::EventsTaken => f.write_str("the VM's events have a reader already: keep what Gate::events has given, or drop it before asking again"),
Self::NoCpuid => f.write_str("the vCPU's CPUID has no leaf 0 or no leaf 1: give the gate what KVM_SET_CPUID2 got"),
Self::OtherCpu { vcpu, chosen, seen } => write!(f, "vCPU {vcpu} is of the processor {seen}, and the policy was chosen for {chosen}"),
Self::CpuidChanged { vcpu } => write!(f, "the CPUID of vCPU {vcpu} has changed since it was first added: give the gate what KVM_SET_CPUID2 got, which KVM_GET_CPUID2 does not give back as it was"),
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

/// The reasons why the gate could not answer an exit as the policy says. If the VMM runs the vCPU again
/// after this error, the guest gets #GP.
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
        /// The MSR.
        index: MsrIndex,
        /// The direction.
        access: Access,
    },
    /// The access needs another filter, and the gate that would set it has been dropped, or its
    /// publisher has panicked.
    Gone,
    /// The `VcpuGate` does not answer for this vCPU, or the vCPU was not reset.
    Vcpu(VcpuError),
    /// The policy does not deny the access. But the VMM's own filter denies it, or KVM itself refuses it,
    /// and the VMM's own mask asks for the exit. The exit is unanswered, as the kernel made it, for the VMM
    /// to answer. This error comes only after [`Gate::set_beside`](super::Gate::set_beside).
    Theirs,
    /// The handler request is of another vCPU, or the exit of the request no longer waits for a reply: the
    /// exit has been answered, completed or forgotten.
    Stale,
}

impl fmt::Display for AnswerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoExit => f.write_str("the vCPU has no MSR exit that waits for an answer"),
            Self::Reason(reason) => write!(f, "the exit has the reason {reason}, which is none"),
            Self::Call(errno) => write!(f, "a call on the vCPU failed: {errno}"),
            Self::Publish(errno) => write!(f, "the kernel's filter cannot be changed: {errno}"),
            Self::OtherFilter { index, access } => write!(
                f,
                "the kernel keeps refusing a {access} of MSR {index} that the policy allows: something else has set the VM's filter"
            ),
            Self::Gone => f.write_str("the gate that sets this VM's filters is gone"),
            Self::Vcpu(error) => error.fmt(f),
            Self::Theirs => {
                f.write_str("the exit is one that the VMM's own filter or mask asks for")
            }
            Self::Stale => f.write_str("the exit that this answers has been answered, or is gone"),
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
    /// The bytes are not a saved state, or they hold a state that the program cannot take over. Nothing was
    /// restored.
    Restore(RestoreError),
    /// The vCPU's last exit has not been answered: the guest's access is neither done nor refused.
    Unanswered,
    /// The `VcpuGate` does not answer for this vCPU, or the vCPU was not reset.
    Vcpu(VcpuError),
    /// KVM does not accept the value of a register.
    Register {
        /// The register.
        index: MsrIndex,
        /// The value.
        value: u64,
    },
    /// A system call on the vCPU failed. The gate or a device made the call.
    Call(CallErrno),
}

impl fmt::Display for StateError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Restore(error) => error.fmt(f),
            Self::Unanswered => {
                f.write_str("the vCPU has an MSR exit that waits for an answer: answer it first")
            }
            Self::Vcpu(error) => error.fmt(f),
            Self::Register { index, value } => write!(
                f,
                "KVM does not take the value {value:#x} for MSR {index}: give both hosts' vCPUs the same CPUID, and capture on the newer kernel only what the older one has"
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
        /// The vCPU.
        vcpu: VcpuId,
    },
    /// The vCPU is not the one that was first reset or restored. The vCPU may be of another VM.
    OtherVcpu {
        /// The vCPU that the `VcpuGate` is for.
        vcpu: VcpuId,
    },
    /// KVM has no CPUID for the vCPU yet, or one that differs in a part that the gate relies on.
    OtherCpuid {
        /// The vCPU.
        vcpu: VcpuId,
    },
    /// Another [`VcpuGate`](super::VcpuGate) answers for this KVM vCPU already. Each of the two would
    /// know only some of the pins that the guest has set.
    TiedTwice {
        /// The number of the `VcpuGate` whose call is refused.
        vcpu: VcpuId,
        /// The number of the `VcpuGate` that answers for the vCPU.
        other: VcpuId,
    },
    /// The vCPU has not run since its state was restored, and this call would undo the restore.
    Restored {
        /// The vCPU.
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
                "this is not the vCPU that the VcpuGate of vCPU {vcpu} was first reset with: give it that one's file descriptor and shared page, and each vCPU its own VcpuGate"
            ),
            Self::OtherCpuid { vcpu } => write!(
                f,
                "KVM has another CPUID for vCPU {vcpu} than Gate::vcpu was given, or none yet: give KVM_SET_CPUID2 the same, before VcpuGate::reset"
            ),
            Self::TiedTwice { vcpu, other } => write!(
                f,
                "the VcpuGate of vCPU {vcpu} was given the file descriptor and page of vCPU {other}, which has a VcpuGate: give each vCPU its own, and drop the old one before a vCPU gets another number"
            ),
            Self::Restored { vcpu } => write!(
                f,
                "vCPU {vcpu} has not run since VcpuGate::restore, whose pins and registers this would undo: call restore last, or drop the VcpuGate and make another for a vCPU that is to begin anew"
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
