//! The interface to everything in which a guest can access MSRs under a filter: a real KVM, the model of
//! KVM, and future backends. One test body runs on all these backends.

use std::fmt;
use std::time::Duration;

use crate::errno::CallErrno;
use crate::exit::RawReasons;
use crate::measure::guest::{Apic, Guest, GuestError};
use crate::measure::machine_checks::set_up_machine_checks;
use crate::measure::observed::{Observed, Step};
use crate::probe::HostCaps;
use crate::sys::calls::enable_reasons;
use crate::sys::raw::{RawFilter, set_filter_raw};

/// A VM with one vCPU. A test can set the filter and the mask of exit reasons of this VM, and run scripts of
/// MSR accesses in its guest.
pub trait Backend {
    /// The kind of this backend: a real KVM or the model.
    fn kind(&self) -> BackendKind;

    /// Sets the VM's mask of exit reasons: `KVM_ENABLE_CAP` of capability 188 (S1.9).
    ///
    /// # Errors
    /// Returns the error number of `KVM_ENABLE_CAP`.
    fn set_reasons(&mut self, mask: RawReasons) -> Result<(), CallErrno>;

    /// Sets the VM's filter: `KVM_X86_SET_MSR_FILTER` (S2).
    ///
    /// # Errors
    /// Returns the error number of `KVM_X86_SET_MSR_FILTER`.
    fn set_filter(&mut self, request: &RawFilter) -> Result<(), CallErrno>;

    /// Runs the steps of `script` in the guest, one after the other, and answers each exit with the reply of
    /// its step.
    ///
    /// # Errors
    /// Returns an error if the guest could not be run to the end of the script. The results of the
    /// steps that the guest did execute are lost then.
    fn run(&mut self, script: &[Step]) -> Result<Vec<Observed>, GuestError>;
}

/// The kind of a [`Backend`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum BackendKind {
    /// A real KVM. Results of this backend show what this host's kernel does.
    Kvm,
    /// The model of KVM. Results of this backend do not come from a kernel.
    Model,
}

/// Prints `kvm` or `model`.
impl fmt::Display for BackendKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Kvm => "kvm",
            Self::Model => "model",
        })
    }
}

/// The backend with a real KVM. One VM serves any number of filters and scripts.
pub struct KvmBackend {
    guest: Guest,
}

impl fmt::Debug for KvmBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KvmBackend").finish_non_exhaustive()
    }
}

impl KvmBackend {
    /// Creates a VM on this host.
    ///
    /// A guest that does not end by itself is interrupted by the signal `SIGRTMIN` + 7. For that,
    /// [`Backend::run`] installs a handler in this process that does nothing, and unblocks the signal in
    /// the calling thread.
    ///
    /// # Errors
    /// Returns an error if the host's KVM is no longer usable, or if a system call fails.
    pub fn new(host: &HostCaps) -> Result<Self, GuestError> {
        let guest = Guest::new(host, Apic::Absent)?;
        Ok(Self { guest })
    }

    /// Creates a VM on this host whose vCPU has all machine-check features that KVM supports. Without them
    /// some machine-check registers take no values.
    ///
    /// # Errors
    /// Those of [`Self::new`].
    pub fn with_machine_checks(host: &HostCaps) -> Result<Self, GuestError> {
        let backend = Self::new(host)?;
        let kvm = host.open()?;
        set_up_machine_checks(&kvm, backend.guest.vcpu()).map_err(|errno| GuestError::Call {
            name: "KVM_X86_SETUP_MCE",
            errno,
        })?;
        Ok(backend)
    }

    /// Sets how long a script may run before [`Backend::run`] returns an error. A script of more than a few
    /// thousand steps runs in parts, and each part gets this time. The default is 60 seconds;
    /// [`Duration::MAX`] means no limit.
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
