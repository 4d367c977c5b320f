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

/// A VM that handles its guest's MSR accesses as a VM of KVM does.
///
/// All methods take `&self`: any thread may set the VM's filter or reason mask while its vCPUs run
/// on other threads, and no vCPU waits for such a change (`publish.rs` explains how). The filter
/// lives until the VM and all its vCPUs are dropped, in whichever order (S7).
///
/// ```
/// use msrgate_filter::*;
///
/// // Deny every access that no range allows. The only range allows none.
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

/// An error for a filter that was made for another revision than the VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ForeignFilter {
    /// The revision of KVM that the VM behaves like.
    pub vm: Revision,
    /// The revision of KVM that the filter was made for.
    pub filter: Revision,
}

impl fmt::Display for ForeignFilter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { vm, filter } = self;
        write!(
            f,
            "the filter has the revision {filter:?}, but the VM has {vm:?}"
        )
    }
}

impl core::error::Error for ForeignFilter {}

impl Vm {
    /// Creates a VM without a filter, in which no access exits to user space. The VM takes 174 KiB of
    /// memory (see `publish.rs`).
    #[must_use]
    pub fn new(revision: Revision) -> Self {
        Self {
            shared: Arc::new(Shared::new(revision)),
        }
    }

    /// The revision of KVM that the VM behaves like.
    #[must_use]
    pub fn revision(&self) -> Revision {
        self.shared.revision()
    }

    /// Answers `KVM_CHECK_EXTENSION` (S1.1, S1.2, S1.10).
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

    /// Handles `KVM_ENABLE_CAP` with `argument` in `args[0]` (S1.9).
    ///
    /// Only `KVM_CAP_X86_USER_SPACE_MSR` can be enabled: `argument` is the new reason mask.
    /// `KVM_CAP_X86_MSR_FILTER` can only be queried, with [`Self::check_extension`].
    ///
    /// # Errors
    /// [`Errno::Einval`] for any other capability, and on mainline for a mask with unknown bits.
    pub fn enable_cap(&self, capability: Capability, argument: u64) -> Result<(), Errno> {
        if capability != Capability::user_space_msr(self.revision()) {
            return Err(Errno::Einval);
        }
        let mask = ReasonMask::from_bits(self.revision(), argument).map_err(|_| Errno::Einval)?;
        self.set_reasons(mask);
        Ok(())
    }

    /// Sets the VM's reason mask: from the next access on, an access that fails for one of these
    /// reasons exits to user space.
    ///
    /// A VMM should include `Filter` in the mask before it sets a filter, and keep it there until
    /// the filter is gone. Without `Filter` in the mask, a refused access is #GP (S7).
    pub fn set_reasons(&self, mask: ReasonMask) {
        self.shared.set_reasons(mask);
    }

    /// Sets the parameter `ignore_msrs` of the host's KVM, as an administrator does (S10.1).
    pub fn set_unknown_msrs(&self, unknown: UnknownMsrs) {
        self.shared.set_unknown_msrs(unknown);
    }

    /// Handles `KVM_X86_SET_MSR_FILTER` for a caller of this width, whose struct is at `argument`
    /// (S2).
    ///
    /// When the call has returned, every check that begins uses the new filter, and no check still uses
    /// the old filter. On mainline a failed call leaves the old filter in force. On v6 a failed call
    /// leaves the unfinished filter, as built up to the failure (S2.7). The call allocates, and waits
    /// for other calls that set a filter and for vCPUs that read the old one.
    ///
    /// # Errors
    /// The error of the first check that fails, in the order of S2 of `docs/kvm-semantics.md`, with
    /// its errno.
    pub fn set_msr_filter(
        &self,
        width: CallerWidth,
        memory: &(impl UserMemory + ?Sized),
        argument: UserAddress,
    ) -> Result<(), SetError> {
        self.set_msr_filter_watched(width, memory, argument, |_| ())
    }

    /// Handles `KVM_X86_SET_MSR_FILTER` as [`Self::set_msr_filter`] does. In addition, calls
    /// `visible` with each filter that becomes visible to guests, before the next filter becomes
    /// visible. On mainline that is one filter, on v6 several (S7).
    ///
    /// # Errors
    /// The errors of [`Self::set_msr_filter`].
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

    /// Sets a validated filter in one step, on either revision. Guests never see part of the new
    /// filter.
    ///
    /// # Errors
    /// [`ForeignFilter`] if the filter was made for the other revision. The VM then keeps its
    /// filter.
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

    /// Handles `KVM_CREATE_VCPU`: creates a vCPU with these registers, for one thread to run.
    ///
    /// The vCPUs of a VM are numbered from 0 in the order of their creation.
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
