//! One interface to everything that lets a guest access MSRs under a filter: a real KVM, the
//! model of one, and whatever comes next. One test body runs on all.

use std::fmt;
use std::time::Duration;

use crate::errno::CallErrno;
use crate::exit::RawReasons;
use crate::measure::guest::{Apic, Guest, GuestError};
use crate::measure::observed::{Observed, Step};
use crate::probe::HostCaps;
use crate::sys::calls::enable_reasons;
use crate::sys::raw::{RawFilter, set_filter_raw};

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
