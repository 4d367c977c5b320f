//! Unsafe: maps a page that the kernel fills with zeros in a forked child, and registers a function that the
//! C library calls in the child.
//!
//! The library's data about its process. A forked child begins anew: it has none of the parent's threads,
//! its copies of locks that were held during the fork are never released, and it cannot use the parent's
//! VMs.
#![expect(
    unsafe_code,
    reason = "madvise(2) of a page of our own, and pthread_atfork"
)]

use std::ptr::{self, NonNull};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicPtr, Ordering};
use std::time::{Duration, Instant};

use crate::ending::{self, Ending};
use crate::helper::Helper;
use crate::signals::Mask;
use crate::sys;
use crate::table::Table;

/// The library's data about this process.
pub(crate) struct Process {
    pub(crate) pid: u32,
    pub(crate) table: Table,
    pub(crate) helper: Helper,
}

/// The address of the word that points to this process's [`Process`]. The word lies in a page that the
/// kernel fills with zeros in a forked child.
static PLACE: OnceLock<&'static AtomicPtr<Process>> = OnceLock::new();

/// The data of the process that last made a KVM request: this process, or one from which it was forked. A
/// forked child closes its copies of the library's descriptors of that process's VMs, because KVM would keep
/// the VMs as long as the child has them.
static LAST: AtomicPtr<Process> = AtomicPtr::new(ptr::null_mut());

extern "C" fn begin_child() {
    // SAFETY: the pointer is null, or to a process that is never dropped, of which the child has a copy.
    let parent = unsafe { LAST.swap(ptr::null_mut(), Ordering::AcqRel).as_ref() };
    if let Some(parent) = parent {
        parent.table.own.close_in_child();
    }
}

/// Makes the page for [`PLACE`].
///
/// # Errors
/// The kernel gives no memory, or cannot fill the page with zeros in a forked child.
pub(crate) fn prepare() -> Result<(), String> {
    const SIZE: usize = 4096;
    let failed = || format!("no page for a process: {}", std::io::Error::last_os_error());
    let (prot, flags) = (
        libc::PROT_READ | libc::PROT_WRITE,
        libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
    );
    // SAFETY: the mapping is new, at a place that the kernel chooses.
    let page = unsafe { libc::mmap(ptr::null_mut(), SIZE, prot, flags, -1, 0) };
    let page = NonNull::new(page).filter(|_| page != libc::MAP_FAILED);
    let page = page.ok_or_else(failed)?;
    // SAFETY: the mapping is ours and has this size.
    if unsafe { libc::madvise(page.as_ptr(), SIZE, libc::MADV_WIPEONFORK) } != 0 {
        return Err(failed());
    }
    // SAFETY: the page stays mapped and is aligned, and zeros are a null pointer.
    let place = unsafe { page.cast::<AtomicPtr<Process>>().as_ref() };
    let _ = PLACE.set(place);
    // SAFETY: the function is one of this library, which is never unloaded. It calls only what may be called in a child
    // of several threads.
    let failed = unsafe { libc::pthread_atfork(None, None, Some(begin_child)) };
    match failed {
        0 => Ok(()),
        error => Err(std::io::Error::from_raw_os_error(error).to_string()),
    }
}

/// Returns the library's data about this process, if the process has made a KVM request.
#[inline]
pub(crate) fn known() -> Option<&'static Process> {
    let process = PLACE.get()?.load(Ordering::Acquire);
    // SAFETY: the pointer is null, or to a process that `here` has leaked.
    unsafe { process.as_ref() }
}

/// Returns the library's data about this process, and starts the helper thread of the process if necessary.
///
/// # Errors
/// The kernel does not make the helper thread, or the library was not set up.
pub(crate) fn here() -> Result<&'static Process, String> {
    let process = match known() {
        Some(process) => process,
        None => begin()?,
    };
    // If the process was known, another thread may be about to start the helper thread.
    process.helper.start(|| process.chores())?;
    Ok(process)
}

fn begin() -> Result<&'static Process, String> {
    let place = PLACE.get().ok_or("the library was not set up")?;
    let process = Box::into_raw(Box::new(Process {
        pid: sys::process(),
        table: Table::new(|| {
            if let Some(process) = known() {
                process.helper.wake();
            }
        }),
        helper: Helper::new(),
    }));
    let set = place.compare_exchange(
        ptr::null_mut(),
        process,
        Ordering::AcqRel,
        Ordering::Acquire,
    );
    match set {
        Ok(_) => {
            LAST.store(process, Ordering::Release);
            // The main thread of a forked child may be another one of its parent's.
            ending::watch_main_thread();
            // SAFETY: the process is never dropped.
            Ok(unsafe { &*process })
        }
        Err(other) => {
            // SAFETY: the box was made above, and no other thread has seen it.
            drop(unsafe { Box::from_raw(process) });
            // SAFETY: another thread has stored this process, and it is never dropped.
            Ok(unsafe { &*other })
        }
    }
}

/// The time after which the helper thread looks again for descriptors that the VMM has closed without
/// calling the library's `close`.
const STALE: Duration = Duration::from_secs(1);

/// The time after which the helper thread looks again for other threads of the VMM, once the VMM's main
/// thread has ended.
const ALONE: Duration = Duration::from_millis(20);

impl Process {
    /// Returns the function that the helper thread calls between jobs.
    fn chores(&'static self) -> impl FnMut() -> Option<Duration> + use<> {
        let mut ending = Ending::new(Mask::of_this_thread());
        let mut looked = Instant::now();
        move || {
            if looked.elapsed() >= STALE {
                self.table.take_stale();
                looked = Instant::now();
            }
            self.table.sweep();
            if ending::has_begun(self.pid) {
                ending.end_if_alone();
                return Some(ALONE);
            }
            // Without a VM the thread sleeps until it is woken.
            (!self.table.is_empty()).then_some(STALE)
        }
    }
}
