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
    Mapped(Box<Mapped>),
}

pub(super) struct Mapped {
    wants: Wants,
    map: Map,
}

type Wants = Box<dyn Fn(MsrIndex, Access) -> PassThrough + Send>;

enum Map {
    Vmx(VmxBitmap),
    Svm(SvmMap),
}

impl Mapped {
    fn recompute(&mut self, decide: &dyn Fn(MsrIndex, Access) -> Decision) {
        match &mut self.map {
            Map::Vmx(bitmap) => bitmap.recompute(&self.wants, decide),
            Map::Svm(map) => map.recompute(&self.wants, decide),
        }
    }
}

impl<R> Vcpu<R> {
    /// Runs the guest on this hardware, which passes through what `wants` wants and the filter allows
    /// (S6.3). Without this call every access exits.
    pub fn pass_through(
        &mut self,
        hardware: Hardware,
        wants: impl Fn(MsrIndex, Access) -> PassThrough + Send + 'static,
    ) {
        let map = match hardware {
            Hardware::Vmx => Map::Vmx(VmxBitmap::exit_all()),
            Hardware::Svm => Map::Svm(SvmMap::exit_all()),
        };
        self.intercepts = Intercepts::Mapped(Box::new(Mapped {
            wants: Box::new(wants),
            map,
        }));
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
        if let Intercepts::Mapped(mapped) = &mut self.intercepts {
            self.shared
                .with_filter(self.number, |decide| mapped.recompute(decide));
        }
    }

    pub(super) fn intercept(&self, index: MsrIndex, access: Access) -> Intercept {
        let exits = match &self.intercepts {
            Intercepts::All => true,
            Intercepts::Mapped(mapped) => match &mapped.map {
                Map::Vmx(bitmap) => bitmap.intercepts(index, access),
                Map::Svm(map) => map.intercepts(index, access),
            },
        };
        if exits {
            Intercept::Exits
        } else {
            Intercept::Passes
        }
    }
}
