//! The state that a VM and its vCPUs own together: one filter, one reason mask, the requests to all
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

/// Readers of up to this many vCPUs do not write to each other's cache lines.
const STRIPES: usize = 16;

/// What the host does about MSRs that KVM does not know: its module parameter `ignore_msrs`
/// (S10.1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum UnknownMsrs {
    /// `ignore_msrs=0`: the access fails.
    #[default]
    Fail = 0,
    /// `ignore_msrs=1`: reads give 0, writes are dropped.
    Ignore = 1,
}

/// A vCPU's place among those of its VM, counted from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VcpuNumber(u32);

impl VcpuNumber {
    /// The number itself.
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

/// How often `MSR_FILTER_CHANGED` was requested of all vCPUs. One that has seen fewer has the
/// request pending (S6.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Changes(u64);

impl Shared {
    /// The state of a VM without a filter, in which no access exits.
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

    /// Counts a new vCPU and returns its number.
    pub(crate) fn next_vcpu(&self) -> VcpuNumber {
        VcpuNumber(self.vcpus.fetch_add(1, Ordering::Relaxed))
    }

    /// The number of vCPUs that were ever created.
    pub(crate) fn vcpus(&self) -> u32 {
        self.vcpus.load(Ordering::Relaxed)
    }

    /// Replaces the filter. On return every check that begins uses `filter`, and none that began
    /// before still uses the old one.
    pub(crate) fn publish(&self, filter: &Filter) {
        self.published.publish(filter.lookup());
    }

    /// What `look` makes of the decisions of one filter, whole.
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

    /// What a register's fault comes to under the host's `ignore_msrs`: no fault, and the value 0.
    ///
    /// # Errors
    /// The fault stands.
    pub(crate) fn ignore(&self, fault: RegisterFault) -> Result<(), RegisterFault> {
        let ignoring = self.unknown_msrs.load(Ordering::Acquire) == UnknownMsrs::Ignore as usize;
        match fault {
            RegisterFault::Unknown if ignoring => Ok(()),
            _ => Err(fault),
        }
    }

    /// Asks all vCPUs, those to come as well, to handle `MSR_FILTER_CHANGED` before their next
    /// entry. A vCPU that sees the request sees the filter it is about.
    pub(crate) fn request_recompute(&self) {
        self.changes.fetch_add(1, Ordering::Release);
    }

    pub(crate) fn changes(&self) -> Changes {
        Changes(self.changes.load(Ordering::Acquire))
    }
}
