//! The request that has a vCPU's intercept bitmaps recomputed (S6.4).

use super::Vcpu;
use super::hardware::{Hardware, Intercepts};
use crate::intercept::PassThrough;
use crate::msr::{Access, MsrIndex};

impl<R> Vcpu<R> {
    /// Runs the guest on this hardware, which passes through what `wants` wants and the filter
    /// allows (S6.3). Without this call every access exits. `wants` must not set a filter: setters
    /// wait for it.
    pub fn pass_through(
        &mut self,
        hardware: Hardware,
        wants: impl Fn(MsrIndex, Access) -> PassThrough + Send + 'static,
    ) {
        self.intercepts = Intercepts::new(hardware, wants);
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
