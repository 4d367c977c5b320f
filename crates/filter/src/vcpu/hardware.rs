//! The intercept bitmaps of a vCPU, and the request that has them recomputed (S6.4).

use alloc::boxed::Box;

use super::Vcpu;
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
    fn recompute(&mut self, decide: &dyn Fn(MsrIndex, Access) -> Decision) {
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

impl<R> Vcpu<R> {
    /// Runs the guest on this hardware, which passes through what `wants` wants and the filter
    /// allows (S6.3). Without this call every access exits. `wants` must not set a filter: setters
    /// wait for it.
    pub fn pass_through(
        &mut self,
        hardware: Hardware,
        wants: impl Fn(MsrIndex, Access) -> PassThrough + Send + 'static,
    ) {
        let wants = Box::new(wants);
        self.intercepts = match hardware {
            Hardware::Vmx => Intercepts::Vmx(wants, Box::default()),
            Hardware::Svm => Intercepts::Svm(wants, Box::default()),
        };
        self.recompute();
    }

    /// Whether `MSR_FILTER_CHANGED` waits for the next entry.
    #[must_use]
    pub fn is_recompute_pending(&self) -> bool {
        self.seen != self.shared.changes()
    }

    /// What `KVM_RUN` does before each entry.
    pub(super) fn handle_requests(&mut self) {
        if self.is_recompute_pending() {
            self.recompute();
        }
    }

    /// From one filter, whole. The request is taken before the filter is looked at, so that one
    /// published meanwhile is not missed. Setters wait for this, some 50,000 decisions at most.
    fn recompute(&mut self) {
        self.seen = self.shared.changes();
        let intercepts = &mut self.intercepts;
        self.shared
            .with_filter(self.number, |decide| intercepts.recompute(decide));
    }
}
