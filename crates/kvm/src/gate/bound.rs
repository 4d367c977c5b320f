//! The vCPU of KVM's that a `VcpuGate` is tied to, from its first reset on.
//!
//! A part holds pins and registers of one vCPU. The first reset or restore ties it to that vCPU, by the
//! address of the shared page and by the file descriptor. Each answer looks at the page, and at the file
//! descriptor where that comes apart from it.

use std::os::fd::RawFd;

use super::VcpuId;
use super::error::VcpuError;

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
}

/// The vCPU that a part is tied to.
pub(super) struct Bound {
    /// The vCPU whose exits may be answered, or [`Place::NOWHERE`]: it was not reset, or that failed.
    ready: Place,
    /// The vCPU that it was first reset with.
    first: Option<Place>,
}

impl Bound {
    /// To none yet.
    pub(super) const fn nowhere() -> Self {
        Self {
            ready: Place::NOWHERE,
            first: None,
        }
    }

    /// Whether the vCPU at `place` may be answered for. If not, [`Self::why_not`] says why.
    #[inline]
    pub(super) fn is_ready(&self, place: Place) -> bool {
        self.ready == place
    }

    /// The same by the shared page alone: each exit asks, and a binding's type for a vCPU has the file
    /// descriptor of that page.
    #[inline]
    pub(super) const fn has_page_of(&self, place: Place) -> bool {
        self.ready.page == place.page
    }

    /// Why the vCPU at `place` is not answered for: it was not reset, or is another one.
    #[cold]
    #[inline(never)]
    pub(super) fn why_not(&self, id: VcpuId, place: Place) -> VcpuError {
        match self.is_open_to(id, place) {
            Err(other) => other,
            Ok(()) => VcpuError::NotReset { vcpu: id },
        }
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
        self.ready = Place::NOWHERE;
    }

    /// It has succeeded, for the vCPU at `place`.
    pub(super) const fn done(&mut self, place: Place) {
        self.ready = place;
        self.first = Some(place);
    }
}
