//! Functions that install a filter in a VM, replace it while guests run, and remove it. The order of the
//! system calls ensures that a denied access is never an unexpected #GP and never allowed (S7).

use std::error::Error;
use std::fmt;
use std::os::fd::{AsRawFd, OwnedFd};

use msrgate_filter::{Filter, ReasonMask, Revision};

use crate::errno::CallErrno;
use crate::exit::RawReasons;
use crate::sys::calls;
use crate::sys::raw::{RawFilter, set_filter, set_filter_raw};

/// A VM in which [`install`] has installed a filter. No ioctl reads the filter or the mask of exit
/// reasons back, so this value remembers the mask. This value keeps a duplicate of the VM's file descriptor,
/// so the calls on this value always reach the same VM.
#[derive(Debug)]
#[must_use = "the filter stays in the VM, but only this value knows the mask of exit reasons"]
pub struct Installed {
    vm: OwnedFd,
    mask: Mask,
}

/// The mask of exit reasons that a VM has; `None` if the mask is unknown.
#[derive(Debug)]
pub(crate) struct Mask(Option<RawReasons>);

/// The reason why a filter could not be installed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum InstallError {
    /// The filter was made for another version of KVM than mainline Linux.
    Revision(Revision),
    /// The kernel refused to enable `KVM_CAP_X86_USER_SPACE_MSR` with the needed mask of exit reasons.
    Reasons {
        /// The mask of exit reasons that was passed to the kernel.
        mask: RawReasons,
        /// The error number that the kernel returned.
        errno: CallErrno,
    },
    /// The VM's file descriptor could not be duplicated. The VM's filter and mask are unchanged.
    Duplicate(CallErrno),
    /// The kernel refused `KVM_X86_SET_MSR_FILTER`. The VM keeps the filter that it had (S2.7).
    Filter(CallErrno),
}

impl fmt::Display for InstallError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Revision(revision) => write!(
                f,
                "a filter of revision {revision:?} cannot be installed: all kernels have the revision Mainline"
            ),
            Self::Reasons { mask, errno } => {
                write!(f, "the kernel refuses the exit reasons {mask}: {errno}")
            }
            Self::Duplicate(errno) => {
                write!(f, "cannot duplicate the VM's file descriptor: {errno}")
            }
            Self::Filter(errno) => write!(f, "the kernel refuses the filter: {errno}"),
        }
    }
}

impl Error for InstallError {}

/// Installs `filter` in a VM, and makes accesses exit to user space for exactly the reasons in
/// `reasons`. The mask of reasons is set before the filter, so the first denied access is already an
/// exit (S7).
///
/// Call this function before any vCPU of the VM runs: no call can detect that a vCPU has run, and a
/// filter does not undo what the guest did before.
///
/// A filter and a mask that the VM has already are replaced. If you have the VM's [`Installed`], call
/// [`Installed::replace`] instead, which never makes a denied access an unexpected #GP in the meantime.
///
/// # Errors
/// - [`InstallError::Revision`]: the filter was made for another version of KVM than mainline Linux.
///   The VM's filter and mask are unchanged.
/// - [`InstallError::Duplicate`]: the VM's file descriptor could not be duplicated. The VM's filter and
///   mask are unchanged.
/// - [`InstallError::Reasons`] or [`InstallError::Filter`]: the kernel refused the mask or the filter. A VM
///   that had no filter still has none.
pub fn install(
    vm: &impl AsRawFd,
    filter: &Filter,
    reasons: ReasonMask,
) -> Result<Installed, InstallError> {
    let mut installed = Installed {
        vm: calls::duplicate(vm).map_err(|error| InstallError::Duplicate(error.into()))?,
        mask: Mask::unknown(),
    };
    installed.replace(filter, reasons)?;
    Ok(installed)
}

impl Installed {
    /// Replaces the filter and the mask of exit reasons; vCPUs may run meanwhile. During the call either
    /// filter may decide an access of the guest, and the VM exits for the reasons of both masks.
    ///
    /// If the kernel refuses to reduce the mask at the end, the call still succeeds: the VM keeps exiting
    /// for the reasons of both masks, and [`Self::reasons`] returns them.
    ///
    /// # Errors
    /// Returns [`InstallError::Revision`], [`InstallError::Reasons`] or [`InstallError::Filter`], as
    /// [`install`] does. The old filter and its mask then still hold (S2.7).
    pub fn replace(&mut self, filter: &Filter, reasons: ReasonMask) -> Result<(), InstallError> {
        self.mask.replace(&self.vm, filter, reasons)
    }

    /// Removes the VM's filter, and then clears the mask of exit reasons (S7).
    ///
    /// # Errors
    /// - [`InstallError::Filter`]: the kernel refused to remove the filter; filter and mask still hold.
    /// - [`InstallError::Reasons`]: the filter is removed, but the kernel refused to clear the mask;
    ///   [`Self::reasons`] still returns the mask.
    pub fn remove(&mut self) -> Result<(), InstallError> {
        set_filter_raw(&self.vm, &RawFilter::default()).map_err(InstallError::Filter)?;
        self.mask.ask_for(&self.vm, RawReasons::NONE)
    }

    /// The reasons for which an MSR access of the guest exits to user space.
    #[must_use]
    pub fn reasons(&self) -> RawReasons {
        self.mask.reasons()
    }
}

impl Mask {
    /// Returns the value that stands for the mask of a VM in which other code may have set a mask. This
    /// value equals no mask, so the installation of the first filter always sets the mask.
    pub(crate) const fn unknown() -> Self {
        Self(None)
    }

    fn reasons(&self) -> RawReasons {
        self.0.unwrap_or(RawReasons::NONE)
    }

    /// Replaces filter and mask as [`Installed::replace`] does; `self` is the mask of `vm`.
    ///
    /// # Errors
    /// Returns the errors of [`Installed::replace`].
    pub(crate) fn replace(
        &mut self,
        vm: &(impl Filtered + ?Sized),
        filter: &Filter,
        reasons: ReasonMask,
    ) -> Result<(), InstallError> {
        if filter.revision() != Revision::Mainline {
            return Err(InstallError::Revision(filter.revision()));
        }
        let (before, reasons) = (self.reasons(), reasons.into());
        self.ask_for(vm, before.union(reasons))?;
        let taken = vm.set_filter(filter).map_err(InstallError::Filter);
        // If this call fails, the mask still has every reason that the filter in force needs. Extra
        // reasons only cause extra exits and let no access through, so the error can be ignored.
        let _ = self.ask_for(vm, if taken.is_ok() { reasons } else { before });
        taken
    }

    fn ask_for(
        &mut self,
        vm: &(impl Filtered + ?Sized),
        reasons: RawReasons,
    ) -> Result<(), InstallError> {
        if self.0 != Some(reasons) {
            vm.set_reasons(reasons)
                .map_err(|errno| InstallError::Reasons {
                    mask: reasons,
                    errno,
                })?;
            self.0 = Some(reasons);
        }
        Ok(())
    }
}

/// A VM, real or in a test, whose filter and mask of exit reasons can be set.
pub(crate) trait Filtered {
    /// Sets the VM's mask of exit reasons (S1.9).
    ///
    /// # Errors
    /// Returns the kernel's error number; the VM's mask is then unchanged.
    fn set_reasons(&self, reasons: RawReasons) -> Result<(), CallErrno>;

    /// Sets the VM's filter.
    ///
    /// # Errors
    /// Returns the kernel's error number; the VM's filter is then unchanged (S2.7).
    fn set_filter(&self, filter: &Filter) -> Result<(), CallErrno>;
}

/// A VM of a real KVM, by its file descriptor.
impl Filtered for OwnedFd {
    fn set_reasons(&self, reasons: RawReasons) -> Result<(), CallErrno> {
        calls::enable_reasons(self, reasons)
    }

    fn set_filter(&self, filter: &Filter) -> Result<(), CallErrno> {
        set_filter(self, filter)
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use msrgate_filter::{Accesses, Bitmap, DefaultAction, Errno, ExitReason, MsrIndex, Range};

    use super::*;

    const REFUSED: CallErrno = CallErrno::Known(Errno::Efault);

    /// A test's VM, which counts its calls from 1, records them, and fails those whose numbers are in
    /// `fails`.
    struct Calls {
        fails: Vec<usize>,
        state: RefCell<State>,
    }

    #[derive(Default)]
    struct State {
        calls: usize,
        masks: Vec<u64>,
        filters: usize,
    }

    impl Calls {
        fn failing(fails: &[usize]) -> Self {
            Self {
                fails: fails.to_vec(),
                state: RefCell::default(),
            }
        }

        fn call(&self) -> Result<std::cell::RefMut<'_, State>, CallErrno> {
            let mut state = self.state.borrow_mut();
            state.calls += 1;
            if self.fails.contains(&state.calls) {
                return Err(REFUSED);
            }
            Ok(state)
        }

        /// Returns the masks that were passed to the VM, in order, and the number of filters that were set.
        fn given(&self) -> (Vec<u64>, usize) {
            let state = self.state.borrow();
            (state.masks.clone(), state.filters)
        }
    }

    impl Filtered for Calls {
        fn set_reasons(&self, reasons: RawReasons) -> Result<(), CallErrno> {
            self.call()?.masks.push(reasons.get());
            Ok(())
        }

        fn set_filter(&self, _: &Filter) -> Result<(), CallErrno> {
            self.call()?.filters += 1;
            Ok(())
        }
    }

    fn filter() -> Filter {
        let bitmap = Bitmap::from_fn(1, |_| true).unwrap();
        let range = Range::new(Accesses::Both, MsrIndex::MIN, bitmap);
        Filter::new(Revision::Mainline, DefaultAction::Deny, vec![range]).unwrap()
    }

    /// Replaces a filter with exits for `before` by a filter with exits for `after`. The calls whose numbers
    /// are in `fails` fail.
    fn replaced(
        before: &[ExitReason],
        after: &[ExitReason],
        fails: &[usize],
    ) -> (Result<(), InstallError>, (Vec<u64>, usize), RawReasons) {
        let mask = |reasons| ReasonMask::of(Revision::Mainline, reasons);
        let mut installed = Mask::unknown();
        installed
            .replace(&Calls::failing(&[]), &filter(), mask(before))
            .unwrap();
        let vm = Calls::failing(fails);
        let seen = installed.replace(&vm, &filter(), mask(after));
        (seen, vm.given(), installed.reasons())
    }

    const UNKNOWN: &[ExitReason] = &[ExitReason::Unknown];
    const FILTER: &[ExitReason] = &[ExitReason::Filter];

    #[test]
    fn s7_replace_of_filter_first_sets_union_of_old_and_new_reason_masks() {
        let (seen, given, reasons) = replaced(UNKNOWN, FILTER, &[]);
        assert_eq!((seen, given), (Ok(()), (vec![6, 4], 1)));
        assert_eq!(reasons, RawReasons::new(4));
    }

    #[test]
    fn replace_of_filter_that_kernel_refuses_restores_reason_mask() {
        let refused = Err(InstallError::Filter(REFUSED));
        let (seen, given, reasons) = replaced(UNKNOWN, FILTER, &[2]);
        assert_eq!((seen, given), (refused, (vec![6, 2], 0)));
        assert_eq!(reasons, RawReasons::new(2));
        // The kernel refuses the first filter of a VM.
        let (seen, given, reasons) = replaced(&[], FILTER, &[2]);
        assert_eq!((seen, given), (refused, (vec![4, 0], 0)));
        assert_eq!(reasons, RawReasons::NONE);
        // Restoring the mask fails, too: `reasons` then returns the mask that is in force.
        let (seen, given, reasons) = replaced(UNKNOWN, FILTER, &[2, 3]);
        assert_eq!((seen, given), (refused, (vec![6], 0)));
        assert_eq!(reasons, RawReasons::new(6));
    }

    /// The first `replace` in a VM sets the mask of exit reasons even if it is to be empty, because the
    /// VMM may have set another mask before.
    #[test]
    fn first_replace_of_filter_sets_reason_mask_even_if_empty() {
        let (none, vm) = (ReasonMask::NONE, Calls::failing(&[]));
        let mut mask = Mask::unknown();
        mask.replace(&vm, &filter(), none).unwrap();
        assert_eq!(vm.given(), (vec![0], 1));
        mask.replace(&vm, &filter(), none).unwrap();
        assert_eq!(vm.given(), (vec![0], 2));
    }

    #[test]
    fn replace_with_reason_mask_that_kernel_refuses_sets_no_filter() {
        let refused = InstallError::Reasons {
            mask: RawReasons::new(6),
            errno: REFUSED,
        };
        let (seen, given, reasons) = replaced(UNKNOWN, FILTER, &[1]);
        assert_eq!((seen, given), (Err(refused), (vec![], 0)));
        assert_eq!(reasons, RawReasons::new(2));
    }

    /// If the mask cannot be reduced at the end, `replace` succeeds: the new filter is in force, and an
    /// error would make the gate use the old program with the new filter.
    #[test]
    fn replace_of_filter_succeeds_if_reason_mask_cannot_be_reduced() {
        let (seen, given, reasons) = replaced(UNKNOWN, FILTER, &[3]);
        assert_eq!((seen, given), (Ok(()), (vec![6], 1)));
        assert_eq!(reasons, RawReasons::new(6));
    }
}
