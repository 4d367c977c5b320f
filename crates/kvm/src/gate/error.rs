//! Why a gate cannot do what it was asked.

use std::io;

use msrgate_filter::{Access, MsrIndex};
use msrgate_program::answer::{ResponderError, RestoreError};
use msrgate_program::{CompileError, Cpu};

use super::VcpuId;
use super::touch::Closed;
use crate::errno::CallErrno;
use crate::exit::{RawReason, RawReasons};
use crate::install::InstallError;

/// Why a gate does not do what it was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GateError {
    /// It cannot answer.
    #[error(transparent)]
    Responder(#[from] ResponderError),
    /// Its filter, with what has to be seen of accesses that it allows, fits no filter.
    #[error("the accesses that the policy logs or audits do not fit a filter: {0}")]
    Pack(#[from] CompileError),
    /// The host's KVM does not exit for reasons that the program needs.
    #[error(
        "this KVM has no exits for the reasons {0}, which the policy needs: run a newer kernel"
    )]
    Reasons(RawReasons),
    /// The program answers for unknown MSRs, and this host hides them (S10.1).
    #[error(
        "the policy answers for MSRs that KVM does not know, and this host has kvm.ignore_msrs=1, which hides them: write 0 to /sys/module/kvm/parameters/ignore_msrs"
    )]
    IgnoreMsrs,
    /// The program answers for unknown MSRs, and nobody can tell whether this host hides them (S10.1).
    #[error(
        "the policy answers for MSRs that KVM does not know, and kvm.ignore_msrs, which may hide them, cannot be read: make /sys/module/kvm/parameters/ignore_msrs readable, or tell by HostCaps::with_ignore_msrs"
    )]
    IgnoreMsrsNotSeen,
    /// A device reads the guest's memory.
    #[error(
        "the policy's microcode device accepts updates, which it reads from the guest's memory: give the gate that memory (GateOptions::memory), or write `update = \"ignore\"`"
    )]
    NoMemory,
    /// Events are to have RIP, and KVM does not share registers.
    #[error("events are to hold RIP, and this KVM puts no registers into kvm_run")]
    NoSharedRegisters,
    /// A queue for events that is too long.
    #[error(
        "a queue of {asked} events for each vCPU is too long: EventOptions::queue may be {most} at most"
    )]
    Queue {
        /// What [`EventOptions::queue`](super::events::EventOptions::queue) is.
        asked: usize,
        /// What it may be.
        most: usize,
    },
    /// The kernel refuses the filter or the mask.
    #[error(transparent)]
    Install(#[from] InstallError),
    /// The gate is in no VM, so that nothing is filtered.
    #[error(
        "this gate is not installed in a VM, so that nothing is filtered: call Gate::install first"
    )]
    NotInstalled,
    /// The gate is in a VM already.
    #[error("this gate is in a VM already: make one for each VM")]
    InstalledTwice,
    /// Another gate is in the VM, or its vCPUs still have parts of it.
    #[error(
        "this VM has a gate already: give that one the program by Gate::replace, or drop it and its VcpuGates first"
    )]
    OtherGate,
    /// The vCPU has a part of the gate already. Two would each have half of its pins.
    #[error(
        "vCPU {vcpu} has a VcpuGate already: keep that one as long as the vCPU runs, and drop it before the vCPU is added again"
    )]
    VcpuTwice {
        /// The vCPU.
        vcpu: VcpuId,
    },
    /// The VM's events have a reader already. Two would each get a part of them.
    #[error(
        "the VM's events have a reader already: keep what Gate::events has given, or drop it before asking again"
    )]
    EventsTaken,
    /// A CPUID by which no processor is known.
    #[error("the vCPU's CPUID has no leaf 0 or no leaf 1: give the gate what KVM_SET_CPUID2 got")]
    NoCpuid,
    /// A vCPU of another processor than the first one's.
    #[error("vCPU {vcpu} is of the processor {seen}, and the policy was chosen for {chosen}")]
    OtherCpu {
        /// The vCPU.
        vcpu: VcpuId,
        /// The first vCPU's processor.
        chosen: Cpu,
        /// This one's.
        seen: Cpu,
    },
    /// A vCPU with another CPUID than it had.
    #[error(
        "the CPUID of vCPU {vcpu} has changed since it was first added: give the gate what KVM_SET_CPUID2 got, which KVM_GET_CPUID2 does not give back as it was"
    )]
    CpuidChanged {
        /// The vCPU.
        vcpu: VcpuId,
    },
    /// The system has no file descriptor or no thread left.
    #[error(transparent)]
    Io(io::Error),
}

/// Why an exit was not answered as the policy says. The guest gets #GP, if it is run on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AnswerError {
    /// The vCPU's last exit was for something else, or has been answered.
    #[error("the vCPU has no MSR exit that waits for an answer")]
    NoExit,
    /// The exit has a reason that no kernel known here gives.
    #[error("the exit has the reason {0}, which is none")]
    Reason(RawReason),
    /// A call on the vCPU failed.
    #[error("a call on the vCPU failed: {0}")]
    Call(CallErrno),
    /// The kernel's filter cannot be opened for the access any more.
    #[error("the kernel's filter cannot be changed: {0}")]
    Publish(CallErrno),
    /// The program lets KVM handle the access, and the kernel's filter has kept refusing it for
    /// seconds: it is not the gate's.
    #[error(
        "the kernel keeps refusing a {access} of MSR {index} that the policy allows: something else has set the VM's filter"
    )]
    OtherFilter {
        /// The MSR.
        index: MsrIndex,
        /// The direction.
        access: Access,
    },
    /// The access needs another filter, and there is nobody to set it: the gate has been dropped.
    #[error("the gate that sets this VM's filters is gone")]
    Gone,
    /// The vCPU is not the one that this part of the gate is for, or was not reset.
    #[error(transparent)]
    Vcpu(#[from] VcpuError),
    /// This answer is to an exit that has been answered or is gone.
    #[error("the exit that this answers has been answered, or is gone")]
    Stale,
}

/// Why a vCPU's state was not saved or restored.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StateError {
    /// The state is none, or another program's. Nothing was restored.
    #[error(transparent)]
    Restore(#[from] RestoreError),
    /// The vCPU's last exit has not been answered, so that the guest's access is neither done nor
    /// refused.
    #[error("the vCPU has an MSR exit that waits for an answer: answer it first")]
    Unanswered,
    /// The vCPU is not the one that this part of the gate is for, or was not reset.
    #[error(transparent)]
    Vcpu(#[from] VcpuError),
    /// A call on the vCPU failed.
    #[error("a call on the vCPU failed: {0}")]
    Call(CallErrno),
}

/// Why a vCPU's part of a gate does nothing for the vCPU that it was given.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum VcpuError {
    /// The vCPU was never reset or restored, or that failed.
    #[error(
        "vCPU {vcpu} was not reset: call VcpuGate::reset or restore before the vCPU first runs"
    )]
    NotReset {
        /// The vCPU.
        vcpu: VcpuId,
    },
    /// It is another vCPU, of this VM or another, than the one that was first reset or restored.
    #[error(
        "this is not the vCPU that the VcpuGate of vCPU {vcpu} was first reset with: give it that one's file descriptor and shared page, and each vCPU its own VcpuGate"
    )]
    OtherVcpu {
        /// The vCPU that the part of the gate is for.
        vcpu: VcpuId,
    },
    /// KVM has another CPUID for the vCPU, in what the gate goes by, or none yet.
    #[error(
        "KVM has another CPUID for vCPU {vcpu} than Gate::vcpu was given, or none yet: give KVM_SET_CPUID2 the same, before VcpuGate::reset"
    )]
    OtherCpuid {
        /// The vCPU.
        vcpu: VcpuId,
    },
}

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
