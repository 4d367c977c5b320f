//! The KVM vCPU to which a `VcpuGate` is bound, from the vCPU's first reset on.
//!
//! A `VcpuGate` holds the pins and registers of one vCPU. The first reset or restore binds the `VcpuGate` to
//! that vCPU, by the address of the shared page and by the file descriptor. Each answer to an exit compares
//! the address of the page, and also the file descriptor if the VMM passes page and file descriptor
//! separately. The first answer after a reset or a restore checks the CPUID again.

use std::os::fd::RawFd;

use super::error::VcpuError;
use super::id::VcpuId;

/// The identity of a KVM vCPU, as its VMM passes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// The address of the vCPU's shared page.
    page: usize,
    fd: RawFd,
}

impl Place {
    /// A value that is the identity of no vCPU, since no shared page is mapped at address 0.
    const NOWHERE: Self = Self { page: 0, fd: -1 };

    pub(super) const fn new(page: usize, fd: RawFd) -> Self {
        Self { page, fd }
    }

    /// The address of the shared page, which is unique to the vCPU.
    pub(super) const fn page(self) -> usize {
        self.page
    }
}

/// The vCPU that a `VcpuGate` is bound to.
pub(super) struct Bound {
    /// The vCPU that was last reset or restored; [`Place::NOWHERE`] before the first reset or restore, and
    /// after one that failed.
    begun: Place,
    /// [`Place::NOWHERE`] until the vCPU's first exit after a reset or restore; equal to `begun` from that exit on.
    /// After the first exit a VMM cannot change the vCPU's CPUID.
    running: Place,
    /// The vCPU that this `VcpuGate` was the first to reset or restore successfully.
    first: Option<Place>,
    /// The vCPU that is reserved for this `VcpuGate`: no other `VcpuGate` can be tied to that vCPU.
    tied: Option<Place>,
    /// The kind of call that set `begun`: a reset or a restore.
    by: Beginning,
}

/// The call after which a `VcpuGate` may answer the exits of its vCPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Beginning {
    /// A call of `VcpuGate::reset`.
    Reset,
    /// A call of `VcpuGate::restore`, which loads a saved state.
    Restore,
}

impl Bound {
    /// Returns the binding of a `VcpuGate` that has no vCPU yet.
    pub(super) const fn nowhere() -> Self {
        Self {
            begun: Place::NOWHERE,
            running: Place::NOWHERE,
            first: None,
            tied: None,
            by: Beginning::Reset,
        }
    }

    /// Tells if this `VcpuGate` has answered an exit of the vCPU at `place` since the vCPU was reset or
    /// restored. If it has not, [`Self::check`] tells if this `VcpuGate` may answer an exit of that vCPU.
    #[inline]
    pub(super) fn is_running(&self, place: Place) -> bool {
        self.running == place
    }

    /// Does what [`Self::is_running`] does, but compares the shared page alone, which saves time at each
    /// exit. The page suffices for the vCPU type of a KVM binding, whose file descriptor always belongs to
    /// its page.
    #[inline]
    pub(super) const fn is_running_at_page_of(&self, place: Place) -> bool {
        self.running.page == place.page
    }

    /// Checks that the vCPU at `place` is the vCPU that this `VcpuGate` has last reset or restored.
    ///
    /// # Errors
    /// [`VcpuError::NotReset`] if no reset or restore has succeeded, [`VcpuError::OtherVcpu`] if the vCPU
    /// at `place` is another one.
    #[cold]
    #[inline(never)]
    pub(super) fn check(&self, id: VcpuId, place: Place) -> Result<(), VcpuError> {
        self.is_open_to(id, place)?;
        if self.begun == place {
            return Ok(());
        }
        Err(VcpuError::NotReset { vcpu: id })
    }

    /// Checks that this `VcpuGate` may reset or restore the vCPU at `place`.
    ///
    /// # Errors
    /// [`VcpuError::OtherVcpu`] if this `VcpuGate` has reset or restored another vCPU.
    pub(super) fn is_open_to(&self, id: VcpuId, place: Place) -> Result<(), VcpuError> {
        match self.first {
            Some(first) if first != place => Err(VcpuError::OtherVcpu { vcpu: id }),
            _ => Ok(()),
        }
    }

    /// Notes that a reset or a restore begins. If the reset or restore fails, the `VcpuGate` answers no exit
    /// until another one succeeds.
    pub(super) const fn begin(&mut self) {
        (self.begun, self.running) = (Place::NOWHERE, Place::NOWHERE);
    }

    /// Notes that the reset or restore of the vCPU at `place` has succeeded.
    pub(super) const fn done(&mut self, place: Place, by: Beginning) {
        self.begun = place;
        self.first = Some(place);
        self.by = by;
    }

    /// Tells if the last reset or restore was a restore. The vCPU may have run since.
    pub(super) fn was_restored(&self) -> bool {
        self.begun != Place::NOWHERE && self.by == Beginning::Restore
    }

    /// The vCPU that this `VcpuGate` is tied to. The first call that resets or restores a vCPU ties the
    /// vCPU, even if that call fails later.
    pub(super) const fn tied_to(&self) -> Option<Place> {
        self.tied
    }

    /// Ties this `VcpuGate` to the vCPU at `place`.
    pub(super) const fn tie(&mut self, place: Place) {
        self.tied = Some(place);
    }

    /// Notes that the vCPU has made its first exit since its reset or restore.
    pub(super) const fn runs(&mut self) {
        self.running = self.begun;
    }
}
