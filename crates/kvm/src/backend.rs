//! One interface to everything that lets a guest access MSRs under a filter: a real KVM, the
//! model of one, and whatever comes next. One test body runs on all.

use std::fmt;
use std::time::Duration;

use msrgate_filter::{Access, MsrIndex};

use crate::calls::enable_reasons;
use crate::errno::CallErrno;
use crate::exit::{RawReason, RawReasons};
use crate::guest::{Apic, Guest, GuestError};
use crate::probe::HostCaps;
use crate::raw::{RawFilter, set_filter_raw};

/// A VM with one vCPU, whose filter and mask can be set and whose guest runs scripts.
pub trait Backend {
    /// What is behind it.
    fn kind(&self) -> BackendKind;

    /// Asks for exits for these reasons: `KVM_ENABLE_CAP` of capability 188 (S1.9).
    ///
    /// # Errors
    /// The answer of the call.
    fn set_reasons(&mut self, mask: RawReasons) -> Result<(), CallErrno>;

    /// `KVM_X86_SET_MSR_FILTER` (S2).
    ///
    /// # Errors
    /// The answer of the call.
    fn set_filter(&mut self, request: &RawFilter) -> Result<(), CallErrno>;

    /// Has the guest do each step in turn, and answers its exits as the steps say.
    ///
    /// # Errors
    /// The guest could not be run to its end. What it did until then is lost.
    fn run(&mut self, script: &[Step]) -> Result<Vec<Observed>, GuestError>;
}

/// What is behind a [`Backend`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum BackendKind {
    /// A real KVM: what is seen is what this host's kernel does.
    Kvm,
    /// A model: nothing is measured.
    Model,
}

/// `kvm` or `model`.
impl fmt::Display for BackendKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Kvm => "kvm",
            Self::Model => "model",
        })
    }
}

/// One access, and what user space says should it be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// The MSR.
    pub index: MsrIndex,
    /// What to do to it.
    pub access: Access,
    /// What to write; nothing looks at it in a read.
    pub value: u64,
    /// The answer to an exit.
    pub reply: Reply,
}

/// User space's answer to an exit (S5.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reply {
    /// #GP: `error` is 1.
    Fault,
    /// The access went well: `error` is 0 and `data`, which only a read looks at, is this.
    Value(u64),
}

/// What became of one step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Observed {
    /// What the guest saw.
    pub outcome: Outcome,
    /// What user space saw, if it was asked.
    pub exit: Option<SeenExit>,
}

/// What the guest saw of its access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// RDMSR gave this value.
    Value(u64),
    /// WRMSR went through.
    Written,
    /// #GP.
    Fault(Fault),
}

/// A #GP as the guest's handler found it (S5.7).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Where RIP was.
    pub site: Site,
    /// The error code.
    pub code: u64,
    /// RAX, RCX and RDX.
    pub registers: GuestRegisters,
}

/// Where RIP was at a fault or an exit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Site {
    /// At the RDMSR or WRMSR.
    AtInstruction,
    /// At this address, which is a deviation.
    Elsewhere(u64),
}

/// RAX, RCX and RDX at a fault or an exit, compared with those before the access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GuestRegisters {
    /// All the same, in all 64 bits.
    Untouched,
    /// Not the same, which is a deviation; these are they.
    Changed {
        /// RAX.
        rax: u64,
        /// RCX.
        rcx: u64,
        /// RDX.
        rdx: u64,
    },
}

/// An exit to user space as it was found (S5.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SeenExit {
    /// Why, in the kernel's bits.
    pub reason: RawReason,
    /// The MSR.
    pub index: MsrIndex,
    /// Which exit it was.
    pub access: Access,
    /// The value of a write.
    pub data: u64,
    /// Where RIP was.
    pub site: Site,
    /// RAX, RCX and RDX.
    pub registers: GuestRegisters,
}

/// The backend that is a real KVM. One VM serves any number of filters and scripts.
pub struct KvmBackend {
    guest: Guest,
}

impl fmt::Debug for KvmBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KvmBackend").finish_non_exhaustive()
    }
}

impl KvmBackend {
    /// A new VM on this host.
    ///
    /// A run is ended, should it not end by itself, by the signal `SIGRTMIN` + 7, for which the
    /// process gets a handler that does nothing and which the thread that runs lets through.
    ///
    /// # Errors
    /// The host's KVM has gone, or a call fails.
    pub fn new(host: &HostCaps) -> Result<Self, GuestError> {
        let guest = Guest::new(host, Apic::Absent)?;
        Ok(Self { guest })
    }

    /// How long a script, or each part of some thousand steps of a long one, may run before it is
    /// called endless: 60 seconds unless set here. [`Duration::MAX`] is for ever.
    pub const fn set_patience(&mut self, patience: Duration) {
        self.guest.set_patience(patience);
    }
}

impl Backend for KvmBackend {
    fn kind(&self) -> BackendKind {
        BackendKind::Kvm
    }

    fn set_reasons(&mut self, mask: RawReasons) -> Result<(), CallErrno> {
        enable_reasons(self.guest.vm(), mask)
    }

    fn set_filter(&mut self, request: &RawFilter) -> Result<(), CallErrno> {
        set_filter_raw(self.guest.vm(), request)
    }

    fn run(&mut self, script: &[Step]) -> Result<Vec<Observed>, GuestError> {
        let script: Vec<_> = script.iter().map(Into::into).collect();
        self.guest.run(&script)
    }
}
