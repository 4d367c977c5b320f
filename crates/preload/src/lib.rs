//! Unsafe: replaces two functions of the C library, and runs code before `main`.
//!
//! A library that puts an MSR policy into an unmodified VMM. `msrgate exec` has the dynamic linker load the
//! library before the C library, so that the VMM calls the `ioctl` and `close` of this crate.
//!
//! The library exports these two functions and imports neither. `requests` handles KVM's requests, `run` is
//! the loop of a vCPU, and the thread in `helper` makes every further system call. Outside of a run of
//! `msrgate exec` the library passes every call on to the kernel.
#![expect(unsafe_code, reason = "C's interface")]

mod ending;
mod helper;
mod own_fds;
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

/// The text that identifies this build. The command looks for it in the library's file.
#[used]
static BUILD: &str = msrgate_state::BUILD;

/// KVM's type of ioctl(2) requests: `KVMIO`.
const KVMIO: u32 = 0xae;

/// Handles KVM's requests, and passes every other ioctl(2) on to the kernel.
///
/// # Safety
/// The caller keeps the contract of the C library's `ioctl`: `argument` is what `request` asks for.
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

/// Closes a descriptor, and removes the VM or vCPU behind it from the library's table. The function takes no
/// lock and allocates nothing, because Rust's standard library calls it, too.
#[unsafe(no_mangle)]
pub extern "C" fn close(fd: c_int) -> c_int {
    let Some(process) = process::known() else {
        return sys::close(fd).as_c();
    };
    // The slot is emptied before the kernel can give the number to another file. A child made by vfork(2) shares the
    // parent's memory, but has descriptors of its own: the helper thread, or the parent's next request, finds that the
    // number still is the thing's, and puts it back. Asking for the process's number might be forbidden here.
    if process.table.take(fd) {
        let returned = sys::close(fd);
        process.helper.wake();
        return returned.as_c();
    }
    if process.table.own.has(fd) && sys::process() == process.pid {
        process.table.own.remove(fd);
    }
    sys::close(fd).as_c()
}

/// The library's start-up function, in a section whose functions the C library calls before the VMM's
/// `main`.
#[used]
#[unsafe(link_section = ".init_array")]
static BEFORE_MAIN: extern "C" fn() = begin;

extern "C" fn begin() {
    sys::note_standard_error();
    if let Run::Page(page) = state::find() {
        sys::set_cookie(page.cookie());
        let calls = OwnCalls {
            ioctl: sys::ioctl_of_gate,
            duplicate: own_fds::duplicate,
        };
        // SAFETY: `ioctl_of_gate` makes the system call ioctl(2) with the arguments that it is given.
        unsafe { make_calls_by(calls) };
        if let Err(why) = process::prepare() {
            sys::say(&why);
        }
        ending::watch_main_thread();
    }
}
