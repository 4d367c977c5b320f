//! Putting a filter into a VM, replacing it while guests run, and taking it out again, each in
//! the order in which no denied access is ever a surprising #GP or an allowed one (S7).

use std::os::fd::AsRawFd;

use msrgate_filter::{Filter, ReasonMask, Revision};

use crate::calls::enable_reasons;
use crate::errno::CallErrno;
use crate::exit::RawReasons;
use crate::raw::{RawFilter, set_filter, set_filter_raw};

/// What a VM has been given. There is no ioctl that reads it back, so this remembers.
#[derive(Debug)]
#[must_use = "the filter stays in the VM; without this, its mask is forgotten"]
pub struct Installed {
    reasons: RawReasons,
}

/// Why a filter is not in force.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InstallError {
    /// The filter decides by other rules than the kernel's.
    #[error("a filter of revision {0:?} cannot be installed: kernels follow mainline")]
    Revision(Revision),
    /// `KVM_CAP_X86_USER_SPACE_MSR` was refused.
    #[error("the kernel refuses the exit reasons {mask}: {errno}")]
    Reasons {
        /// The bits it was asked for.
        mask: RawReasons,
        /// Its answer.
        errno: CallErrno,
    },
    /// `KVM_X86_SET_MSR_FILTER` was refused. The filter that was there before still holds (S2.7).
    #[error("the kernel refuses the filter: {0}")]
    Filter(CallErrno),
}

/// Installs `filter` in a VM that has none, with exits for `reasons`: the mask first, so that the
/// first denied access is already an exit (S7).
///
/// # Errors
/// The kernel refuses the mask or the filter, or the filter is not of mainline's rules. After a
/// failure the VM has no filter, and may have the mask.
pub fn install(
    vm: &impl AsRawFd,
    filter: &Filter,
    reasons: ReasonMask,
) -> Result<Installed, InstallError> {
    let mut installed = Installed::nothing();
    installed.replace(vm, filter, reasons)?;
    Ok(installed)
}

impl Installed {
    /// What a VM has been given at first.
    pub(crate) const fn nothing() -> Self {
        Self {
            reasons: RawReasons::NONE,
        }
    }

    /// Puts `filter` in the place of the one in force; vCPUs may run meanwhile. While both can be
    /// met, so can the exits of both masks: the old one's, and `reasons`.
    ///
    /// # Errors
    /// As [`install`]. The old filter then still holds (S2.7), unless it is [`reasons`] that the
    /// kernel refuses at the very end; exits may come for either mask, and [`Self::reasons`] tells.
    ///
    /// [`reasons`]: InstallError::Reasons
    pub fn replace(
        &mut self,
        vm: &impl AsRawFd,
        filter: &Filter,
        reasons: ReasonMask,
    ) -> Result<(), InstallError> {
        if filter.revision() != Revision::Mainline {
            return Err(InstallError::Revision(filter.revision()));
        }
        let reasons = reasons.into();
        self.ask_for(vm, self.reasons.union(reasons))?;
        set_filter(vm, filter).map_err(InstallError::Filter)?;
        self.ask_for(vm, reasons)
    }

    /// Takes the filter out, and only then the mask (S7).
    ///
    /// # Errors
    /// The kernel refuses; what is still in force is then still remembered here.
    pub fn remove(&mut self, vm: &impl AsRawFd) -> Result<(), InstallError> {
        set_filter_raw(vm, &RawFilter::default()).map_err(InstallError::Filter)?;
        self.ask_for(vm, RawReasons::NONE)
    }

    /// The reasons for which the VM exits.
    #[must_use]
    pub const fn reasons(&self) -> RawReasons {
        self.reasons
    }

    fn ask_for(&mut self, vm: &impl AsRawFd, reasons: RawReasons) -> Result<(), InstallError> {
        if reasons != self.reasons {
            enable_reasons(vm, reasons).map_err(|errno| InstallError::Reasons {
                mask: reasons,
                errno,
            })?;
            self.reasons = reasons;
        }
        Ok(())
    }
}
