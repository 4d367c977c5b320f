//! The request to a vCPU to recompute its intercept bitmaps (S6.4).

use super::Vcpu;
use super::hardware::{Hardware, Intercepts};
use crate::intercept::{PassThrough, SvmMap};
use crate::msr::{Access, MsrIndex};

impl<R> Vcpu<R> {
    /// Runs the guest on a processor with this virtualization extension. The processor passes an
    /// access through if `wants` returns [`PassThrough::Wanted`] and the filter allows the access
    /// (S6.3).
    ///
    /// Before the first call of this function, every access exits. `wants` must not set a filter:
    /// the call that sets it would wait forever for `wants` to return.
    pub fn pass_through(
        &mut self,
        hardware: Hardware,
        wants: impl Fn(MsrIndex, Access) -> PassThrough + Send + 'static,
    ) {
        self.intercepts = Intercepts::new(hardware, wants);
        self.recompute();
    }

    /// The MSR permission map of a vCPU that [`Self::pass_through`] has put on a processor with SVM. A
    /// hypervisor gives its address to the processor; the address stays the same until the next call of
    /// [`Self::pass_through`].
    #[must_use]
    pub fn svm_map(&self) -> Option<&SvmMap> {
        self.intercepts.svm_map()
    }

    /// Returns true if the request `MSR_FILTER_CHANGED` is pending: the vCPU handles the request at its
    /// next VM entry.
    #[must_use]
    pub fn is_recompute_pending(&self) -> bool {
        self.seen != self.shared.changes()
    }

    /// Handles the pending request, as `KVM_RUN` does before each VM entry.
    pub(super) fn handle_requests(&mut self) {
        if self.is_recompute_pending() {
            self.recompute();
        }
    }

    /// Recomputes the whole intercept bitmap of the vCPU, all of it from one filter of the VM. The request
    /// is marked as handled before the filter is read, so that a filter that is published during the
    /// recomputation leaves a new request. A set call waits until the recomputation is done, which takes
    /// some 50,000 decisions at most.
    fn recompute(&mut self) {
        self.seen = self.shared.changes();
        let intercepts = &mut self.intercepts;
        self.shared
            .with_filter(self.number, |decide| intercepts.recompute(decide));
    }
}
