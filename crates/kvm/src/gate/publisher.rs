//! The thread that opens a VM's filter for accesses that have been seen.
//!
//! A vCPU asks, rewinds its access and tries again; it does not wait until the filter is set, which
//! takes the kernel a grace period: the new filter holds long before (S7). There is one publisher a
//! VM, so that filters are set in the order in which they were made.

use std::io;
use std::sync::Arc;

use super::filters::fitting;
use super::shared::Shared;
use super::thread::OwnThread;
use crate::errno::CallErrno;
use crate::install::InstallError;

/// Starts the thread, with all signals blocked.
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

fn errno_of(error: &InstallError) -> CallErrno {
    match error {
        InstallError::Reasons { errno, .. }
        | InstallError::Filter(errno)
        | InstallError::Duplicate(errno) => *errno,
        InstallError::Revision(_) => CallErrno::Known(msrgate_filter::Errno::Einval),
    }
}
