//! The state that a VM and its vCPUs share: one filter, one reason mask, and the requests to all
//! vCPUs.

use core::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};

use crate::decide::Decision;
use crate::exit::ReasonMask;
use crate::filter::Filter;
use crate::lookup::Lookup;
use crate::lookup::shared::SharedLookup;
use crate::msr::{Access, MsrIndex};
use crate::publish::LeftRight;
use crate::registers::RegisterFault;
use crate::revision::Revision;

/// The number of stripes that count readers. Up to this many vCPUs can read without writing to each
/// other's cache lines.
const STRIPES: usize = 16;

/// The host's handling of MSRs that KVM does not know: the module parameter `ignore_msrs` (S10.1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum UnknownMsrs {
    /// `ignore_msrs=0`: an access to an unknown MSR fails.
    #[default]
    Fail = 0,
    /// `ignore_msrs=1`: a read of an unknown MSR returns 0, and a write to one has no effect.
    Ignore = 1,
}

/// A vCPU's number in its VM, counted from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VcpuNumber(u32);

impl VcpuNumber {
    /// The vCPU number as an integer.
    #[must_use]
    pub const fn get(self) -> u32 {
        self.0
    }
}

/// The state that a VM and its vCPUs share.
pub(crate) struct Shared {
    revision: Revision,
    published: LeftRight<SharedLookup, STRIPES>,
    reasons: AtomicU32,
    unknown_msrs: AtomicUsize,
    changes: AtomicU64,
    vcpus: AtomicU32,
}

/// The number of times that all vCPUs of a VM were requested to handle `MSR_FILTER_CHANGED`. For a
/// vCPU that has seen fewer requests, a request is pending (S6.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Changes(u64);

impl Shared {
    /// Creates the state of a VM without a filter, in which no access exits.
    pub(crate) fn new(revision: Revision) -> Self {
        let lookup = Lookup::without_filter(revision);
        let slots = [
            SharedLookup::holding(&lookup),
            SharedLookup::holding(&lookup),
        ];
        Self {
            revision,
            published: LeftRight::new(slots),
            reasons: AtomicU32::new(ReasonMask::NONE.stored()),
            unknown_msrs: AtomicUsize::new(UnknownMsrs::Fail as usize),
            changes: AtomicU64::new(0),
            vcpus: AtomicU32::new(0),
        }
    }

    pub(crate) const fn revision(&self) -> Revision {
        self.revision
    }

    /// Counts a new vCPU of the VM, and returns the new vCPU's number.
    pub(crate) fn next_vcpu(&self) -> VcpuNumber {
        VcpuNumber(self.vcpus.fetch_add(1, Ordering::Relaxed))
    }

    /// The number of vCPUs that the VM has created so far.
    pub(crate) fn vcpus(&self) -> u32 {
        self.vcpus.load(Ordering::Relaxed)
    }

    /// Replaces the VM's filter. When this call has returned, every check that begins uses `filter`,
    /// and no check still uses the old filter.
    pub(crate) fn publish(&self, filter: &Filter) {
        self.published.publish(filter.lookup());
    }

    /// Calls `look` with a function that decides accesses, and returns the result of `look`. During
    /// the call, the function decides all accesses by the same filter of the VM, even if the VM
    /// gets another filter.
    #[inline]
    pub(crate) fn with_filter<T>(
        &self,
        vcpu: VcpuNumber,
        look: impl FnOnce(&dyn Fn(MsrIndex, Access) -> Decision) -> T,
    ) -> T {
        self.published.read(vcpu.get() as usize, |lookup| {
            look(&|index, access| lookup.decide(index, access))
        })
    }

    #[inline]
    pub(crate) fn decide(&self, vcpu: VcpuNumber, index: MsrIndex, access: Access) -> Decision {
        self.published
            .read(vcpu.get() as usize, |lookup| lookup.decide(index, access))
    }

    pub(crate) fn set_reasons(&self, mask: ReasonMask) {
        self.reasons.store(mask.stored(), Ordering::Release);
    }

    pub(crate) fn reasons(&self) -> ReasonMask {
        ReasonMask::from_stored(self.reasons.load(Ordering::Acquire))
    }

    pub(crate) fn set_unknown_msrs(&self, unknown: UnknownMsrs) {
        self.unknown_msrs.store(unknown as usize, Ordering::Release);
    }

    /// Applies the host's `ignore_msrs` to a register's fault: returns `Ok` if the host ignores the
    /// fault.
    ///
    /// # Errors
    /// The fault, if the host does not ignore it.
    pub(crate) fn ignore(&self, fault: RegisterFault) -> Result<(), RegisterFault> {
        let ignoring = self.unknown_msrs.load(Ordering::Acquire) == UnknownMsrs::Ignore as usize;
        match fault {
            RegisterFault::Unknown if ignoring => Ok(()),
            _ => Err(fault),
        }
    }

    /// Asks all vCPUs, including future ones, to handle `MSR_FILTER_CHANGED` before their next VM
    /// entry. A vCPU that sees the request also sees the filter that caused it.
    pub(crate) fn request_recompute(&self) {
        self.changes.fetch_add(1, Ordering::Release);
    }

    pub(crate) fn changes(&self) -> Changes {
        Changes(self.changes.load(Ordering::Acquire))
    }
}
