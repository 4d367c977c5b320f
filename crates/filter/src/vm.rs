//! A VM: one filter, one reason mask, any number of vCPUs.

use alloc::sync::Arc;
use core::fmt;

use crate::abi::{CallerWidth, UserAddress, UserMemory};
use crate::errno::Errno;
use crate::exit::ReasonMask;
use crate::filter::Filter;
use crate::registers::Registers;
use crate::revision::Revision;
use crate::set::{SetCall, SetError};
use crate::shared::{Shared, UnknownMsrs};
use crate::vcpu::Vcpu;

pub use capability::{Capability, Extension};

mod capability;

/// A VM that treats MSRs as KVM's do.
///
/// All methods take `&self`: the VM may be reconfigured from any thread while its vCPUs run on
/// others, and none of them waits (see `publish.rs` for how). The VM's filter lives as long as the
/// last of its vCPUs, whatever is dropped first (S7).
///
/// ```
/// use msrgate_filter::*;
///
/// // Deny all but what a range allows; this one allows nothing.
/// let index = MsrIndex::new(0x8b);
/// let range = Range::new(Accesses::Both, index, Bitmap::from_fn(1, |_| false)?);
/// let filter = Filter::new(Revision::Mainline, DefaultAction::Deny, vec![range])?;
///
/// let vm = Vm::new(Revision::Mainline);
/// vm.set_reasons(ReasonMask::of(vm.revision(), &[ExitReason::Filter]));
/// vm.set_filter(&filter)?;
///
/// let mut vcpu = vm.create_vcpu(RegisterMap::default());
/// vcpu.set_gprs(Gprs { rcx: 0x8b, ..Gprs::RESET });
/// let exit = match vcpu.run(Instruction::Rdmsr) {
///     RunExit::Msr(exit) => exit,
///     other => unreachable!("{other:?}"),
/// };
/// assert_eq!((exit.index, exit.reason), (index, ExitReason::Filter));
///
/// vcpu.reply(Reply::value(0x2b00_0000 << 32));
/// assert_eq!(vcpu.run(Instruction::Rdmsr), RunExit::Retired);
/// assert_eq!(vcpu.gprs().rdx, 0x2b00_0000);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Vm {
    shared: Arc<Shared>,
}

/// A filter that follows the rules of another revision than the VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ForeignFilter {
    /// The VM's revision.
    pub vm: Revision,
    /// The filter's.
    pub filter: Revision,
}

impl fmt::Display for ForeignFilter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { vm, filter } = self;
        write!(f, "a filter of revision {filter:?} for a VM of {vm:?}")
    }
}

impl core::error::Error for ForeignFilter {}

impl Vm {
    /// A VM without a filter, in which no access exits. It takes 174 KiB (see `publish.rs`).
    #[must_use]
    pub fn new(revision: Revision) -> Self {
        Self {
            shared: Arc::new(Shared::new(revision)),
        }
    }

    /// Whose behaviour it has.
    #[must_use]
    pub fn revision(&self) -> Revision {
        self.shared.revision()
    }

    /// `KVM_CHECK_EXTENSION` (S1.1, S1.2, S1.10).
    #[must_use]
    pub fn check_extension(&self, capability: Capability) -> Extension {
        let revision = self.revision();
        let is_present = capability == Capability::user_space_msr(revision)
            || capability == Capability::msr_filter(revision)
            || revision.impostors().contains(&capability.get());
        if is_present {
            Extension::PRESENT
        } else {
            Extension::ABSENT
        }
    }

    /// `KVM_ENABLE_CAP` with `argument` in `args[0]` (S1.9). Only the one of the reason mask can be
    /// enabled; the filter's merely answers [`Self::check_extension`].
    ///
    /// # Errors
    /// EINVAL for any other capability, and for a mask with bits that mainline does not know.
    pub fn enable_cap(&self, capability: Capability, argument: u64) -> Result<(), Errno> {
        if capability != Capability::user_space_msr(self.revision()) {
            return Err(Errno::Einval);
        }
        let mask = ReasonMask::from_bits(self.revision(), argument).map_err(|_| Errno::Einval)?;
        self.set_reasons(mask);
        Ok(())
    }

    /// Makes accesses that fail for these reasons exit, from the next one on. Have `Filter` in it
    /// before a filter is set and until it is gone: what is refused in between is #GP (S7).
    pub fn set_reasons(&self, mask: ReasonMask) {
        self.shared.set_reasons(mask);
    }

    /// Plays the host's administrator (S10.1).
    pub fn set_unknown_msrs(&self, unknown: UnknownMsrs) {
        self.shared.set_unknown_msrs(unknown);
    }

    /// `KVM_X86_SET_MSR_FILTER` by a caller of this width, whose argument lies at `argument` (S2).
    ///
    /// On return every check that begins uses the new filter, and none that began before still uses
    /// the old one. On mainline a failure changes nothing; on v6 it leaves what was built up to
    /// then (S2.7). Allocates; waits for other setters and for readers.
    ///
    /// # Errors
    /// The first check of S2 that failed, with its errno.
    pub fn set_msr_filter(
        &self,
        width: CallerWidth,
        memory: &(impl UserMemory + ?Sized),
        argument: UserAddress,
    ) -> Result<(), SetError> {
        self.set_msr_filter_watched(width, memory, argument, |_| ())
    }

    /// [`Self::set_msr_filter`], calling `visible` after each filter that guests get to see on the
    /// way, before the next one: exactly one on mainline, several on v6 (S7).
    ///
    /// # Errors
    /// Those of [`Self::set_msr_filter`].
    pub fn set_msr_filter_watched(
        &self,
        width: CallerWidth,
        memory: &(impl UserMemory + ?Sized),
        argument: UserAddress,
        mut visible: impl FnMut(&Filter),
    ) -> Result<(), SetError> {
        let call = SetCall::read(self.revision(), width, memory, argument);
        for filter in call.published() {
            self.shared.publish(filter);
            visible(filter);
        }
        if !call.published().is_empty() {
            self.shared.request_recompute();
        }
        call.result()
    }

    /// Sets a filter that is already validated: one swap, on either revision. Never half done.
    ///
    /// # Errors
    /// The filter was made for the other revision; nothing has changed.
    pub fn set_filter(&self, filter: &Filter) -> Result<(), ForeignFilter> {
        if filter.revision() != self.revision() {
            return Err(ForeignFilter {
                vm: self.revision(),
                filter: filter.revision(),
            });
        }
        self.shared.publish(filter);
        self.shared.request_recompute();
        Ok(())
    }

    /// `KVM_CREATE_VCPU`: a vCPU with these registers, to be run by one thread. They are numbered
    /// from 0 in the order of their creation.
    #[must_use]
    pub fn create_vcpu<R: Registers>(&self, registers: R) -> Vcpu<R> {
        let number = self.shared.next_vcpu();
        Vcpu::new(Arc::clone(&self.shared), number, registers)
    }
}

impl fmt::Debug for Vm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Vm")
            .field("revision", &self.revision())
            .field("reasons", &self.shared.reasons())
            .field("vcpus", &self.shared.vcpus())
            .finish_non_exhaustive()
    }
}
