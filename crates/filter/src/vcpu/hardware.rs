//! The intercept bitmaps of a vCPU.

use alloc::boxed::Box;

use crate::decide::Decision;
use crate::intercept::{PassThrough, SvmMap, VmxBitmap};
use crate::msr::{Access, MsrIndex};

/// The virtualization extension that runs the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Hardware {
    /// Intel's virtualization extension, VMX.
    Vmx,
    /// AMD's virtualization extension, SVM.
    Svm,
}

/// The processor's handling of an MSR access of the guest, as the intercept bitmap says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Intercept {
    /// The access leaves guest mode.
    Exits,
    /// The access goes to the register.
    Passes,
}

/// The MSR accesses that leave guest mode, by the intercept bitmap of the vCPU.
pub(super) enum Intercepts {
    /// All accesses leave guest mode: the hypervisor uses no intercept bitmap.
    All,
    /// The accesses whose bit in this VMX bitmap is 1 leave guest mode.
    Vmx(Wants, Box<VmxBitmap>),
    /// The accesses whose bit in this SVM map is 1 leave guest mode.
    Svm(Wants, Box<SvmMap>),
}

/// The accesses that the hypervisor would pass through if there were no filter.
type Wants = Box<dyn Fn(MsrIndex, Access) -> PassThrough + Send>;

impl Intercepts {
    /// Creates the intercept bitmap for this virtualization extension. Every access exits until the
    /// bitmap is computed.
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

    pub(super) fn svm_map(&self) -> Option<&SvmMap> {
        match self {
            Self::Svm(_, map) => Some(map),
            Self::All | Self::Vmx(..) => None,
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
