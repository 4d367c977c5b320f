//! The publisher: the thread that sets a more open filter when a guest makes the first access
//! of a kind that the policy allows and only wants to see.
//!
//! The vCPU's thread asks the publisher for such a filter and rewinds the access, so that the guest executes
//! it again. The vCPU does not wait until the ioctl that sets the filter returns, which takes a grace period
//! of the kernel: the new filter is in force long before that (S7). Each VM has one publisher, so that
//! filters are set in the order in which they were made.
//!
//! A VMM may have a thread of its own do this work, by [`GateOptions::publish_by`](super::GateOptions::publish_by):
//! the gate then hands it [`Publication`]s, and starts no thread.

use std::io;
use std::sync::{Arc, Weak};

use super::filters::fitting;
use super::shared::Shared;
use super::thread::OwnThread;
use crate::errno::CallErrno;
use crate::install::InstallError;

/// Starts the publisher's thread, with all signals blocked.
pub(super) fn spawn(shared: &Arc<Shared>) -> io::Result<OwnThread<()>> {
    let shared = Arc::clone(shared);
    let body = move || {
        let end = End(&shared);
        while let Some(()) = shared.opened.wait() {
            publish(&shared);
        }
        drop(end);
    };
    OwnThread::spawn("msrgate-publish", body)
}

/// The guard that is dropped when the publisher thread ends, also by a panic. It then notes the end, so that
/// no vCPU waits for the thread.
struct End<'s>(&'s Shared);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.opened.end();
    }
}

/// A filter that a thread of the VMM's is to set, since a guest has made a first access: see
/// [`GateOptions::publish_by`](super::GateOptions::publish_by). If a publication is dropped without a call
/// of [`Self::set`], the gate opens its filter for no further access: an access that needs another filter is
/// then an error, [`AnswerError::Gone`](super::AnswerError::Gone).
#[derive(Debug)]
#[must_use = "the vCPU waits for the filter"]
pub struct Publication {
    /// The gate's state; an empty reference once the filter is set.
    shared: Weak<Shared>,
}

impl Publication {
    pub(super) const fn new(shared: Weak<Shared>) -> Self {
        Self { shared }
    }

    /// Sets the filter, by an ioctl that waits for a grace period of the kernel. If the gate and its vCPUs
    /// are gone, the function does nothing.
    pub fn set(mut self) {
        if let Some(shared) = self.shared.upgrade() {
            publish(&shared);
        }
        self.shared = Weak::new();
    }
}

impl Drop for Publication {
    fn drop(&mut self) {
        if let Some(shared) = self.shared.upgrade() {
            shared.opened.end();
        }
    }
}

/// Sets a filter in the kernel that allows the requested accesses, or as many of them as one filter has room
/// for.
pub(super) fn publish(shared: &Shared) {
    let mut control = shared.lock();
    let _making = shared.opened.making();
    // Take the requests only under the lock of `Control`: otherwise a replacement could put another program
    // in force, for which the requests were not made.
    let Some(wanted) = shared.opened.take() else {
        return;
    };
    let responder = shared.current.get().thing;
    let beside = shared.beside.get();
    let Some((filter, opened)) = fitting(&responder, &beside, &wanted) else {
        shared
            .opened
            .refuse(CallErrno::Known(msrgate_filter::Errno::Einval));
        return;
    };
    if opened.len() < wanted.all.len() {
        shared.opened.keep_only(&opened);
    }
    // A gate without a VM has no vCPU, so there is no request to answer.
    let reasons = shared.reasons(&responder, &beside);
    if let Some(vm) = &mut control.vm
        && let Err(error) = vm.replace(&filter, reasons)
    {
        shared.opened.refuse(errno_of(&error));
    }
}

fn errno_of(error: &InstallError) -> CallErrno {
    match error {
        InstallError::Reasons { errno, .. }
        | InstallError::Filter(errno)
        | InstallError::Duplicate(errno) => *errno,
        InstallError::Revision(_) => CallErrno::Known(msrgate_filter::Errno::Einval),
    }
}
