//! The outcome of a gate's answer to an exit, for the thread that runs the vCPU.

use std::fmt;
use std::sync::Arc;

use msrgate_filter::{Access, Exit, MsrIndex};

use super::id::VcpuId;

/// The step that the VMM has to take next, after the gate has looked at an exit.
#[derive(Debug)]
#[must_use = "an exit that nobody answers is a #GP"]
pub enum Outcome {
    /// Run the vCPU again.
    Resume,
    /// Answer the handler request, by [`VcpuGate::finish`](super::VcpuGate::finish): the policy names a
    /// handler of the VMM's.
    Handler(HandlerRequest),
    /// End the VM, or the function call that the VM serves, as the policy says. If the VMM runs the vCPU
    /// again instead, the guest gets #GP.
    Kill(Violation),
}

/// An access that a handler of the VMM's is to answer. If no handler answers, the guest gets #GP.
#[derive(Debug)]
#[must_use = "an access that nobody answers is a #GP"]
pub struct HandlerRequest {
    pub(super) handler: Arc<str>,
    pub(super) exit: Exit,
    /// The number of the `VcpuGate` that made the request. The number is unique in this process.
    pub(super) by: u64,
    /// The number of the exit, counted among the exits of the `VcpuGate` that made the request.
    pub(super) number: u64,
}

impl HandlerRequest {
    /// The handler's name in the policy.
    #[must_use]
    pub fn handler(&self) -> &str {
        &self.handler
    }

    /// The MSR that the guest accesses.
    #[must_use]
    pub const fn index(&self) -> MsrIndex {
        self.exit.index
    }

    /// The direction of the guest's access: read or write.
    #[must_use]
    pub const fn access(&self) -> Access {
        self.exit.access
    }

    /// The value that the guest writes; 0 for a read.
    #[must_use]
    pub const fn value(&self) -> u64 {
        self.exit.data
    }
}

/// An access for which the policy says `kill`: the VMM has to end the VM, or the function call that the VM
/// serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Violation {
    /// The vCPU that made the access.
    pub vcpu: VcpuId,
    /// The MSR that the vCPU accessed.
    pub index: MsrIndex,
    /// The direction of the access: read or write.
    pub access: Access,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            vcpu,
            index,
            access,
        } = self;
        write!(
            f,
            "vCPU {vcpu}: the policy has the action kill for the {access} of MSR {index}"
        )
    }
}

impl std::error::Error for Violation {}
