//! The thread that opens a VM's filter for accesses that have been seen.
//!
//! A vCPU asks, rewinds its access and tries again; it does not wait until the filter is set, which
//! takes the kernel a grace period: the new filter holds long before (S7). There is one publisher a
//! VM, so that filters are set in the order in which they were made.

use std::io;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use msrgate_filter::{
    Access, Accesses, Bitmap, Fallback, Filter, MsrIndex, Range, ReasonMask, Revision,
};
use msrgate_program::answer::Responder;
use msrgate_program::{CompileError, PackError};

use super::Shared;
use super::touch::Wanted;
use crate::errno::CallErrno;
use crate::install::InstallError;
use crate::sys::signals;

/// What a program's filter is at first, and its mask.
pub(super) fn first_filter(responder: &Responder) -> Result<(Filter, ReasonMask), CompileError> {
    let reasons = responder.variant().reasons();
    let filter = if responder.is_traced() {
        match responder.verdicts(&[]).pack() {
            // There is always the narrowest: it opens for what is waited for.
            Err(CompileError::Pack(_)) => responder.fewest_verdicts(&[]).pack()?,
            packed => packed?,
        }
    } else {
        responder.variant().filter().clone()
    };
    Ok((filter, reasons))
}

/// A filter that refuses everything. One range that allows nothing: S2.3.
pub(super) fn deny_all() -> Result<Filter, CompileError> {
    let too_many = |_| CompileError::Pack(PackError::TooManyRanges(Vec::new()));
    let bitmap = Bitmap::from_fn(1, |_| false).map_err(too_many)?;
    let range = Range::new(Accesses::Both, MsrIndex::MIN, bitmap);
    Filter::new(Revision::Mainline, Fallback::Deny, vec![range])
        .map_err(|_| CompileError::Pack(PackError::TooManyRanges(Vec::new())))
}

/// Starts the thread, with all signals blocked.
pub(super) fn spawn(shared: &Arc<Shared>) -> io::Result<JoinHandle<()>> {
    let shared = Arc::clone(shared);
    let body = move || {
        let end = End(&shared);
        while let Some(()) = shared.opened.wait() {
            publish(&shared);
        }
        drop(end);
    };
    signals::while_blocked(|| {
        thread::Builder::new()
            .name("msrgate-publish".into())
            .spawn(body)
    })
}

/// However the thread ends, no vCPU waits for it after that.
struct End<'s>(&'s Shared);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.opened.end();
    }
}

/// Sets the filter that is open for what is wanted, or for as much of it as fits.
pub(super) fn publish(shared: &Shared) {
    let mut control = shared.lock();
    let _making = shared.opened.making();
    // Not before: a replacement would make it another program's.
    let Some(wanted) = shared.opened.take() else {
        return;
    };
    let responder = shared.current.get().thing;
    let Some((filter, opened)) = fitting(&responder, &wanted) else {
        shared
            .opened
            .refuse(CallErrno::Known(msrgate_filter::Errno::Einval));
        return;
    };
    if opened.len() < wanted.all.len() {
        shared.opened.keep_only(&opened);
    }
    // In a gate without a VM no vCPU asks for anything.
    if let Some(vm) = &mut control.vm
        && let Err(error) = vm.replace(&filter, responder.variant().reasons())
    {
        shared.opened.refuse(errno_of(&error));
    }
}

type Single = (MsrIndex, Access);

/// The widest of the filters that fit, and what it is open for.
fn fitting(responder: &Responder, wanted: &Wanted) -> Option<(Filter, Vec<Single>)> {
    for opened in [&wanted.all, &wanted.waiting] {
        if let Ok(filter) = responder.verdicts(opened).pack() {
            return Some((filter, opened.clone()));
        }
    }
    // Sixteen single MSRs fit whatever they are.
    let few: Vec<_> = wanted.waiting.iter().copied().take(16).collect();
    let filter = responder.fewest_verdicts(&few).pack().ok()?;
    Some((filter, few))
}

fn errno_of(error: &InstallError) -> CallErrno {
    match error {
        InstallError::Reasons { errno, .. }
        | InstallError::Filter(errno)
        | InstallError::Duplicate(errno) => *errno,
        InstallError::Revision(_) => CallErrno::Known(msrgate_filter::Errno::Einval),
    }
}
