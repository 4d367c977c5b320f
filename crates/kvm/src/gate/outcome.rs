//! What a vCPU's thread is told of an exit.

use std::fmt;
use std::sync::Arc;

use msrgate_filter::{Access, Exit, MsrIndex};

use super::id::VcpuId;

/// What to do after an exit.
#[derive(Debug)]
#[must_use = "an exit that nobody answers is a #GP"]
pub enum Outcome {
    /// Run the vCPU.
    Resume,
    /// Answer, by [`VcpuGate::finish`](super::VcpuGate::finish): the policy names the VMM's own code.
    Handler(HandlerRequest),
    /// End the call or the VM, as the policy says. A vCPU that is run on gets #GP.
    Kill(Violation),
}

/// An access that the VMM's own code is to answer. If it does not, the guest gets #GP.
#[derive(Debug)]
#[must_use = "an access that nobody answers is a #GP"]
pub struct HandlerRequest {
    pub(super) handler: Arc<str>,
    pub(super) exit: Exit,
    /// The number of the vCPU's part that handed it out, of this gate or another.
    pub(super) by: u64,
    /// Which of that one's exits it is.
    pub(super) number: u64,
}

impl HandlerRequest {
    /// The name that the policy has for the code.
    #[must_use]
    pub fn handler(&self) -> &str {
        &self.handler
    }

    /// The MSR.
    #[must_use]
    pub const fn index(&self) -> MsrIndex {
        self.exit.index
    }

    /// The direction.
    #[must_use]
    pub const fn access(&self) -> Access {
        self.exit.access
    }

    /// The value of a write; 0 for a read.
    #[must_use]
    pub const fn value(&self) -> u64 {
        self.exit.data
    }
}

/// An access for which the policy ends the call or the VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Violation {
    /// The vCPU.
    pub vcpu: VcpuId,
    /// The MSR.
    pub index: MsrIndex,
    /// The direction.
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
            "vCPU {vcpu}: a {access} of MSR {index}, for which the policy says kill"
        )
    }
}

impl std::error::Error for Violation {}
