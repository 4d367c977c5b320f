//! Unsafe: maps the run's state page.
//!
//! The run of `msrgate exec` that this process is part of.
#![expect(unsafe_code, reason = "a file that other processes read is mapped")]

use std::fs::File;
use std::os::fd::AsRawFd as _;
use std::path::Path;
use std::ptr::{self, NonNull};
use std::slice;
use std::sync::OnceLock;
use std::sync::atomic::AtomicU64;

use msrgate_state::Page;

/// The environment variable with the path of the state page.
const VARIABLE: &str = "MSRGATE_STATE";

/// The run of `msrgate exec` that the environment names.
#[derive(Debug)]
pub(crate) enum Run {
    /// The environment names no run: the library changes nothing.
    None,
    /// The environment names a run, and the library has mapped the run's state page.
    Page(Page<'static>),
    /// The environment names a run whose state page cannot be mapped. The text is the reason.
    Bad(String),
}

static RUN: OnceLock<Run> = OnceLock::new();

/// Finds the run that the environment names, and maps its state page. The library calls this once, before
/// the VMM's `main`.
pub(crate) fn find() -> &'static Run {
    RUN.get_or_init(|| match std::env::var_os(VARIABLE) {
        None => Run::None,
        Some(path) => match map(Path::new(&path)) {
            Ok(page) => Run::Page(page),
            Err(why) => Run::Bad(format!("the run's state page cannot be had: {why}")),
        },
    })
}

/// Returns the run that [`find`] found.
#[inline]
pub(crate) fn run() -> &'static Run {
    RUN.get().unwrap_or(&Run::None)
}

fn map(path: &Path) -> Result<Page<'static>, String> {
    let file = File::options().read(true).write(true).open(path);
    let file = file.map_err(|error| format!("{}: {error}", path.display()))?;
    let size = file.metadata().map_err(|error| error.to_string())?.len();
    let size = usize::try_from(size).unwrap_or(usize::MAX);
    let size = size.min(msrgate_state::Layout::largest());
    // SAFETY: the mapping is new, at a place that the kernel chooses, of an open file.
    let address = unsafe {
        libc::mmap(
            ptr::null_mut(),
            size,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED,
            file.as_raw_fd(),
            0,
        )
    };
    let address = NonNull::new(address).filter(|_| address != libc::MAP_FAILED);
    let address = address.ok_or_else(|| std::io::Error::last_os_error().to_string())?;
    // SAFETY: `size` bytes are mapped from the beginning of a page, for as long as the process lives, and
    // every process reads and writes them as atomics. `msrgate exec` has allocated the file, and nobody
    // shortens it.
    let words = unsafe { slice::from_raw_parts(address.cast::<AtomicU64>().as_ptr(), size / 8) };
    Page::new(words).map_err(|bad| bad.to_string())
}
