//! The intercept bitmaps of a vCPU.

use alloc::boxed::Box;

use crate::decide::Decision;
use crate::intercept::{PassThrough, SvmMap, VmxBitmap};
use crate::msr::{Access, MsrIndex};

/// Whose virtualization extension runs the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Hardware {
    /// Intel's.
    Vmx,
    /// AMD's.
    Svm,
}

/// What the processor does with an access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Intercept {
    /// It leaves guest mode.
    Exits,
    /// It goes to the register.
    Passes,
}

/// Which accesses leave guest mode.
pub(super) enum Intercepts {
    /// All: the hypervisor passes nothing through.
    All,
    /// Those whose bit is 1.
    Vmx(Wants, Box<VmxBitmap>),
    /// Those whose bit is 1.
    Svm(Wants, Box<SvmMap>),
}

/// What the hypervisor would pass through if there were no filter.
type Wants = Box<dyn Fn(MsrIndex, Access) -> PassThrough + Send>;

impl Intercepts {
    /// The bitmap of this hardware with which every access exits, until it is computed.
    pub(super) fn new(
        hardware: Hardware,
        wants: impl Fn(MsrIndex, Access) -> PassThrough + Send + 'static,
    ) -> Self {
        let wants = Box::new(wants);
        match hardware {
            Hardware::Vmx => Self::Vmx(wants, Box::default()),
            Hardware::Svm => Self::Svm(wants, Box::default()),
        }
    }

    pub(super) fn recompute(&mut self, decide: &dyn Fn(MsrIndex, Access) -> Decision) {
        match self {
            Self::All => {}
            Self::Vmx(wants, bitmap) => bitmap.recompute(&**wants, decide),
            Self::Svm(wants, map) => map.recompute(&**wants, decide),
        }
    }

    pub(super) fn of(&self, index: MsrIndex, access: Access) -> Intercept {
        let exits = match self {
            Self::All => true,
            Self::Vmx(_, bitmap) => bitmap.intercepts(index, access),
            Self::Svm(_, map) => map.intercepts(index, access),
        };
        if exits {
            Intercept::Exits
        } else {
            Intercept::Passes
        }
    }
}
