//! Unsafe: sets a thread's value with a destructor, and calls exit(3).
//!
//! The end of a process whose main thread has ended by `pthread_exit` while other threads went on. The C
//! library ends such a process with status 0 when its last thread ends. The library's helper thread never
//! ends, so it ends the process itself once it is the only thread left.
#![expect(unsafe_code, reason = "pthread keys and exit(3) have no safe form")]

use std::ffi::c_void;
use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt as _;
use std::ptr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use crate::process;
use crate::signals::Mask;
use crate::sys;

/// The ID of this process once its main thread has called `pthread_exit`; 0 before that.
static ENDS: AtomicU32 = AtomicU32::new(0);

/// The key whose destructor `pthread_exit` calls in the main thread.
static KEY: OnceLock<Option<libc::pthread_key_t>> = OnceLock::new();

extern "C" fn main_thread_ends(_: *mut c_void) {
    ENDS.store(sys::process(), Ordering::Release);
    if let Some(process) = process::known() {
        process.helper.wake();
    }
}

/// Registers a destructor by which this module learns that the main thread has called `pthread_exit`. Does
/// nothing if the calling thread is not the main thread.
pub(crate) fn watch_main_thread() {
    if sys::thread() != sys::process() {
        return;
    }
    let key = KEY.get_or_init(|| {
        let mut key = 0;
        // SAFETY: the call writes a key to the pointer. The destructor is a function of this library, which
        // is never unloaded.
        let failed = unsafe { libc::pthread_key_create(&raw mut key, Some(main_thread_ends)) };
        (failed == 0).then_some(key)
    });
    if let Some(key) = *key {
        let any: *const c_void = ptr::without_provenance(1);
        // SAFETY: the key exists. Its value is not null, so that the destructor is called; nobody follows it.
        unsafe { libc::pthread_setspecific(key, any) };
    }
}

/// Returns true if the main thread of this process has called `pthread_exit`.
pub(crate) fn has_begun(pid: u32) -> bool {
    ENDS.load(Ordering::Acquire) == pid
}

/// The helper thread's search for other threads of the VMM, once the main thread has called `pthread_exit`.
pub(crate) struct Ending {
    /// The signal mask under which the functions run that the VMM has registered by atexit(3).
    mask: Mask,
    /// The number of threads in the process when the search last found threads of the VMM, and the time of
    /// that search.
    found: Option<(u64, Instant)>,
}

impl Ending {
    pub(crate) const fn new(mask: Mask) -> Self {
        Self { mask, found: None }
    }

    /// Ends the process with status 0 if the library's helper thread is the only thread left in the process.
    pub(crate) fn end_if_alone(&mut self) {
        if !main_thread_has_ended() {
            return;
        }
        let Some(threads) = threads() else { return };
        // Listing the threads takes a descriptor for a moment. It is done when their number has changed, and
        // now and then, since one thread may have begun and another have ended.
        if self
            .found
            .is_some_and(|(found, when)| found == threads && when.elapsed() < LIST)
        {
            return;
        }
        let Some(of_program) = threads_of_program(threads) else {
            return;
        };
        // The main thread counts until all others have ended.
        if of_program > MAIN_AND_HELPER {
            self.found = Some((threads, Instant::now()));
            return;
        }
        self.mask.set();
        // SAFETY: the C library calls exit(3) at this point, too. All threads but the library's have
        // ended, and that one does not use what exit(3) frees.
        unsafe { libc::exit(0) };
    }
}

/// Returns true if the main thread has given up its memory, and so executes no further instruction of the
/// program.
fn main_thread_has_ended() -> bool {
    // This path is that of the main thread, whichever thread looks at it. Opening a file would take a
    // descriptor that the VMM counts on.
    fs::read_link("/proc/self/exe").is_err_and(|error| error.kind() == ErrorKind::NotFound)
}

/// Returns the number of threads in this process, or `None` if `/proc` is not mounted.
fn threads() -> Option<u64> {
    // The folder has a link from its parent, one from itself, and one from each thread's folder.
    fs::metadata(THREADS).ok()?.nlink().checked_sub(2)
}

const MAIN_AND_HELPER: u64 = 2;

/// The time after which the threads are listed again although their number is unchanged.
const LIST: Duration = Duration::from_millis(200);

const THREADS: &str = "/proc/self/task";

/// Returns the number of threads that execute the program: all `all` threads of the process except those
/// that the kernel has made in it for its own use, as KVM does for each VM. Returns `None` if threads begin
/// or end during the count.
fn threads_of_program(all: u64) -> Option<u64> {
    let (mut listed, mut of_kernel) = (0, 0);
    for thread in fs::read_dir(THREADS).ok()? {
        listed += 1;
        let stat = fs::read_to_string(thread.ok()?.path().join("stat")).ok()?;
        of_kernel += u64::from(is_of_kernel(&stat));
    }
    (listed == all && threads() == Some(all)).then_some(all - of_kernel)
}

/// Returns true if `stat`, the text of a thread's file `stat` (proc(5)), says that the kernel has made the
/// thread for its own use.
fn is_of_kernel(stat: &str) -> bool {
    /// The flag `PF_USER_WORKER` (`linux/sched.h`) of a thread that the kernel has made in a process. It
    /// exists since Linux 6.4; in earlier kernels KVM's threads belong to no process.
    const USER_WORKER: u32 = 0x4000;
    // The second field is a name in parentheses, which may contain anything. The flags are the ninth.
    let fields = stat.rsplit_once(')').map(|(_, fields)| fields);
    let flags = fields.and_then(|fields| fields.split_ascii_whitespace().nth(6)?.parse().ok());
    flags.is_some_and(|flags: u32| flags & USER_WORKER != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_thread_is_recognised_by_flags_in_its_stat_file() {
        let stat = |name: &str, flags: u32| {
            format!("7 ({name}) S 1 7 7 0 -1 {flags} 0 0 0 0 0 0 0 0 20 0 3")
        };
        assert!(is_of_kernel(&stat("kvm-nx-lpage-re", 0x0040_4040)));
        assert!(!is_of_kernel(&stat("vmm", 0x0040_0040)));
        assert!(!is_of_kernel(&stat("a) S 1 1 1 1 1 16384 (b", 64)));
        assert!(!is_of_kernel(""));
    }
}
