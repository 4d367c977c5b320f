//! The vCPU of KVM's that a `VcpuGate` is tied to, from its first reset on.
//!
//! A part holds pins and registers of one vCPU. The first reset or restore ties it to that vCPU, by the
//! address of the shared page and by the file descriptor. Each answer looks at the page, and at the file
//! descriptor where that comes apart from it. The first answer after each looks at the CPUID once more.

use std::os::fd::RawFd;

use super::error::VcpuError;
use super::id::VcpuId;

/// A vCPU of KVM's, as its VMM has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// The address of its shared page.
    page: usize,
    fd: RawFd,
}

impl Place {
    /// No vCPU's: nothing is mapped at 0.
    const NOWHERE: Self = Self { page: 0, fd: -1 };

    pub(super) const fn new(page: usize, fd: RawFd) -> Self {
        Self { page, fd }
    }

    /// The address of its shared page, of which a vCPU has one.
    pub(super) const fn page(self) -> usize {
        self.page
    }
}

/// The vCPU that a part is tied to.
pub(super) struct Bound {
    /// The vCPU that was reset or restored last, or [`Place::NOWHERE`]: none was, or that failed.
    begun: Place,
    /// The same once its first exit has come, after which no VMM can give it another CPUID.
    running: Place,
    /// The vCPU that it was first reset with.
    first: Option<Place>,
    /// The one that no other part is tied to meanwhile.
    tied: Option<Place>,
    /// The way in which the last one of these began.
    by: Beginning,
}

/// The way in which a vCPU begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Beginning {
    /// Anew.
    Reset,
    /// With a state of before.
    Restore,
}

impl Bound {
    /// To none yet.
    pub(super) const fn nowhere() -> Self {
        Self {
            begun: Place::NOWHERE,
            running: Place::NOWHERE,
            first: None,
            tied: None,
            by: Beginning::Reset,
        }
    }

    /// Tells if the vCPU at `place` has been answered for since it was reset. If not,
    /// [`Self::check`] tells if it may be.
    #[inline]
    pub(super) fn is_running(&self, place: Place) -> bool {
        self.running == place
    }

    /// Tells the same by the shared page alone: each exit asks, and a binding's type for a vCPU has the file
    /// descriptor of that page.
    #[inline]
    pub(super) const fn is_running_at_page_of(&self, place: Place) -> bool {
        self.running.page == place.page
    }

    /// Checks that the vCPU at `place` is the one that was reset or restored.
    ///
    /// # Errors
    /// None was, or another one.
    #[cold]
    #[inline(never)]
    pub(super) fn check(&self, id: VcpuId, place: Place) -> Result<(), VcpuError> {
        self.is_open_to(id, place)?;
        if self.begun == place {
            return Ok(());
        }
        Err(VcpuError::NotReset { vcpu: id })
    }

    /// Whether the vCPU at `place` may be reset or restored by this part.
    ///
    /// # Errors
    /// Another one was before.
    pub(super) fn is_open_to(&self, id: VcpuId, place: Place) -> Result<(), VcpuError> {
        match self.first {
            Some(first) if first != place => Err(VcpuError::OtherVcpu { vcpu: id }),
            _ => Ok(()),
        }
    }

    /// A reset or a restore begins: should it fail, nothing is answered until one succeeds.
    pub(super) const fn begin(&mut self) {
        (self.begun, self.running) = (Place::NOWHERE, Place::NOWHERE);
    }

    /// It has succeeded, for the vCPU at `place`.
    pub(super) const fn done(&mut self, place: Place, by: Beginning) {
        self.begun = place;
        self.first = Some(place);
        self.by = by;
    }

    /// Tells if the vCPU has what this part has restored, unless it has run since.
    pub(super) fn was_restored(&self) -> bool {
        self.begun != Place::NOWHERE && self.by == Beginning::Restore
    }

    /// The vCPU that it is tied to, from the first call that resets or restores one on, also if that failed.
    pub(super) const fn tied_to(&self) -> Option<Place> {
        self.tied
    }

    /// Ties it to a vCPU.
    pub(super) const fn tie(&mut self, place: Place) {
        self.tied = Some(place);
    }

    /// Its first exit has come.
    pub(super) const fn runs(&mut self) {
        self.running = self.begun;
    }
}
