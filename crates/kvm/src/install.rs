//! Putting a filter into a VM, replacing it while guests run, and taking it out again, each in
//! the order in which no denied access is ever a surprising #GP or an allowed one (S7).

use std::error::Error;
use std::fmt;
use std::os::fd::{AsRawFd, OwnedFd};

use msrgate_filter::{Filter, ReasonMask, Revision};

use crate::errno::CallErrno;
use crate::exit::RawReasons;
use crate::sys::calls;
use crate::sys::raw::{RawFilter, set_filter, set_filter_raw};

/// A VM with a filter that was put into it. There is no ioctl that reads filter or mask back, so this
/// remembers the mask; it keeps a duplicate of the VM's file descriptor, so that no other VM can be meant.
#[derive(Debug)]
#[must_use = "the filter stays in the VM; without this, its mask is forgotten"]
pub struct Installed {
    vm: OwnedFd,
    mask: Mask,
}

/// The mask that a VM was given, if that is known.
#[derive(Debug)]
pub(crate) struct Mask(Option<RawReasons>);

/// Why a filter is not in force.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum InstallError {
    /// The filter decides by other rules than the kernel's.
    Revision(Revision),
    /// `KVM_CAP_X86_USER_SPACE_MSR` was refused.
    Reasons {
        /// The bits it was asked for.
        mask: RawReasons,
        /// Its answer.
        errno: CallErrno,
    },
    /// There is no file descriptor left to keep the VM by. Nothing was set.
    Duplicate(CallErrno),
    /// `KVM_X86_SET_MSR_FILTER` was refused. The filter that was there before still holds (S2.7).
    Filter(CallErrno),
}

impl fmt::Display for InstallError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Revision(revision) => write!(
                f,
                "a filter of revision {revision:?} cannot be installed: kernels follow mainline"
            ),
            Self::Reasons { mask, errno } => {
                write!(f, "the kernel refuses the exit reasons {mask}: {errno}")
            }
            Self::Duplicate(errno) => write!(f, "cannot keep the VM's file descriptor: {errno}"),
            Self::Filter(errno) => write!(f, "the kernel refuses the filter: {errno}"),
        }
    }
}

impl Error for InstallError {}

/// Installs `filter` in a VM, with exits for `reasons` and no others: the mask first, so that the first
/// denied access is already an exit (S7). Call it before any vCPU of the VM runs: no call tells whether
/// one has, and what the guest did until then no filter undoes.
///
/// A filter and a mask that the VM has already are replaced; whoever has the VM's [`Installed`] calls
/// [`Installed::replace`], in whose order no denied access is a surprising #GP.
///
/// # Errors
/// The kernel refuses the mask or the filter, or the filter is not of mainline's rules. After a
/// failure a new VM has neither.
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
    /// Puts `filter` in the place of the one in force; vCPUs may run meanwhile. While both can be
    /// met, so can the exits of both masks: the old one's, and `reasons`. Should the kernel not take
    /// a mask with fewer reasons, exits go on to come for both, and [`Self::reasons`] tells.
    ///
    /// # Errors
    /// As [`install`]. The old filter then still holds (S2.7), and so does its mask.
    pub fn replace(&mut self, filter: &Filter, reasons: ReasonMask) -> Result<(), InstallError> {
        self.mask.replace(&self.vm, filter, reasons)
    }

    /// Takes the filter out, and only then the mask (S7).
    ///
    /// # Errors
    /// The kernel refuses; what is still in force is then still remembered here.
    pub fn remove(&mut self) -> Result<(), InstallError> {
        set_filter_raw(&self.vm, &RawFilter::default()).map_err(InstallError::Filter)?;
        self.mask.ask_for(&self.vm, RawReasons::NONE)
    }

    /// The reasons for which the VM exits.
    #[must_use]
    pub fn reasons(&self) -> RawReasons {
        self.mask.reasons()
    }
}

impl Mask {
    /// Of a VM that somebody else may have given one: the first filter sets it, whatever it is.
    pub(crate) const fn unknown() -> Self {
        Self(None)
    }

    fn reasons(&self) -> RawReasons {
        self.0.unwrap_or(RawReasons::NONE)
    }

    /// As [`Installed::replace`], for this VM, which has this mask.
    ///
    /// # Errors
    /// As [`Installed::replace`].
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
        // Which of the two filters there is now, its mask is enough for it. A mask that has more is
        // no reason to call one filter the other: it makes exits, and lets nothing through.
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

/// A VM, as far as it takes filters and masks.
pub(crate) trait Filtered {
    /// Asks for exits for these reasons (S1.9).
    ///
    /// # Errors
    /// It is refused; the mask is what it was.
    fn set_reasons(&self, reasons: RawReasons) -> Result<(), CallErrno>;

    /// Sets a filter.
    ///
    /// # Errors
    /// It is refused; the filter is what it was (S2.7).
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

    /// What a VM has, what it was asked, and which of its calls fail, by number.
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

        /// The masks that it was given, in order, and how many filters.
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

    /// A VM that has exits for `before` gets a filter with those for `after`.
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
    fn s7_both_masks_hold_while_either_filter_may() {
        let (seen, given, reasons) = replaced(UNKNOWN, FILTER, &[]);
        assert_eq!((seen, given), (Ok(()), (vec![6, 4], 1)));
        assert_eq!(reasons, RawReasons::new(4));
    }

    #[test]
    fn after_a_filter_that_is_refused_the_mask_is_what_it_was() {
        let refused = Err(InstallError::Filter(REFUSED));
        let (seen, given, reasons) = replaced(UNKNOWN, FILTER, &[2]);
        assert_eq!((seen, given), (refused, (vec![6, 2], 0)));
        assert_eq!(reasons, RawReasons::new(2));
        // The first filter of a VM.
        let (seen, given, reasons) = replaced(&[], FILTER, &[2]);
        assert_eq!((seen, given), (refused, (vec![4, 0], 0)));
        assert_eq!(reasons, RawReasons::NONE);
        // And should that be refused, too, what is there is known.
        let (seen, given, reasons) = replaced(UNKNOWN, FILTER, &[2, 3]);
        assert_eq!((seen, given), (refused, (vec![6], 0)));
        assert_eq!(reasons, RawReasons::new(6));
    }

    /// A VMM may have asked for exits before: with this filter there are to be none.
    #[test]
    fn first_filter_sets_its_mask_even_if_that_is_empty() {
        let (none, vm) = (ReasonMask::NONE, Calls::failing(&[]));
        let mut mask = Mask::unknown();
        mask.replace(&vm, &filter(), none).unwrap();
        assert_eq!(vm.given(), (vec![0], 1));
        mask.replace(&vm, &filter(), none).unwrap();
        assert_eq!(vm.given(), (vec![0], 2));
    }

    #[test]
    fn without_its_mask_no_filter_is_set() {
        let refused = InstallError::Reasons {
            mask: RawReasons::new(6),
            errno: REFUSED,
        };
        let (seen, given, reasons) = replaced(UNKNOWN, FILTER, &[1]);
        assert_eq!((seen, given), (Err(refused), (vec![], 0)));
        assert_eq!(reasons, RawReasons::new(2));
    }

    /// The new filter holds, and to say otherwise would put a program beside another's filter.
    #[test]
    fn a_mask_that_has_too_much_is_no_failure() {
        let (seen, given, reasons) = replaced(UNKNOWN, FILTER, &[3]);
        assert_eq!((seen, given), (Ok(()), (vec![6], 1)));
        assert_eq!(reasons, RawReasons::new(6));
    }
}
