//! Unsafe: two functions of the C library, and code before `main`.
//!
//! A library that puts an MSR policy into an unmodified VMM. `msrgate exec` has the dynamic linker load it before the C
//! library, so that the VMM's `ioctl` and `close` are the two functions here.
//!
//! It exports these two and imports neither. What it does of KVM's requests is in `requests`, the loop of a vCPU in `run`;
//! all that is more than that one call is made by the thread in `helper`. Where nothing of it is asked for, outside of a
//! run of `msrgate exec`, it passes everything on.
#![expect(unsafe_code, reason = "C's interface")]

mod helper;
mod process;
mod record;
mod requests;
mod run;
mod shared;
mod signals;
mod state;
mod sys;
mod table;
mod thing;

use std::ffi::{c_int, c_ulong, c_void};

use msrgate_kvm::sys::{OwnCalls, make_calls_by};

use requests::{KVM_RUN, Request};
use state::Run;

/// The build, for the command that looks for its library.
#[used]
static BUILD: &str = msrgate_state::BUILD;

/// KVM's type of ioctl(2) requests: `KVMIO`.
const KVMIO: u32 = 0xae;

/// ioctl(2).
///
/// # Safety
/// As the C library's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ioctl(fd: c_int, request: c_ulong, argument: *mut c_void) -> c_int {
    let request = Request {
        fd,
        asked: request,
        argument,
    };
    let returned = match request.number() {
        KVM_RUN => requests::run(request),
        number if number >> 8 & 0xff == KVMIO => requests::other(request),
        _ => request.pass(),
    };
    returned.as_c()
}

/// close(2). It takes no lock and allocates nothing: the standard library's own descriptors come here, too.
#[unsafe(no_mangle)]
pub extern "C" fn close(fd: c_int) -> c_int {
    if let Some(process) = process::known()
        && process.table.has(fd)
        // A child by vfork(2) has our memory, and its descriptors are others.
        && sys::process() == process.pid
        // Before the kernel may give the number to something else.
        && process.table.take(fd)
    {
        let returned = sys::close(fd);
        process.helper.wake();
        return returned.as_c();
    }
    sys::close(fd).as_c()
}

/// The C library calls the functions of this section before it calls the VMM's `main`.
#[used]
#[unsafe(link_section = ".init_array")]
static BEFORE_MAIN: extern "C" fn() = begin;

extern "C" fn begin() {
    sys::note_standard_error();
    if let Run::Page(page) = state::find() {
        sys::set_cookie(page.cookie());
        let calls = OwnCalls {
            ioctl: sys::ioctl_of_gate,
            lowest_fd: sys::lowest_fd(),
        };
        // SAFETY: the function makes the very call.
        unsafe { make_calls_by(calls) };
        if let Err(why) = process::prepare() {
            sys::say(&why);
        }
    }
}
