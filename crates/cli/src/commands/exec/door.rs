//! Unsafe: sets a seccomp filter on this thread, and reads the kernel's notifications.
//!
//! The door: a seccomp filter by which the kernel lets only msrgate's library make VMs, set MSR filters and
//! run vCPUs. The library's requests carry the run's cookie in an argument that ioctl(2) does not have. The
//! kernel hands such requests without the cookie to the watcher, which prints a sentence and makes them fail
//! with EPERM. If the watcher has ended, the requests fail with ENOSYS.
//!
//! The filter applies to the VMM and its children from their first instruction on, whether or not they load
//! the library.
#![expect(unsafe_code, reason = "seccomp(2) and its ioctls have no safe form")]

use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};

use msrgate_filter::abi::CallerWidth;

use crate::failure::Failure;

/// The state of the door, the seccomp filter that guards KVM requests.
#[derive(Debug)]
pub(super) enum Door {
    /// The filter is set, and the watcher gets the refused requests through this listener.
    Heard(OwnedFd),
    /// The filter is set without a listener, because another seccomp filter has one. The kernel refuses the
    /// requests with EPERM, and no sentence is printed.
    Silent,
    /// No filter is set: every program can make VMs.
    Open,
}

/// A KVM request without the run's cookie, which waits until the watcher answers it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Knock {
    id: u64,
    /// The ID of the thread that made the request.
    pub(super) thread: u32,
    /// The kind of the waiting request.
    pub(super) wish: Wish,
}

/// The kind of a KVM request that the filter lets only the library make.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wish {
    /// A request to make a VM: `KVM_CREATE_VM`.
    Vm,
    /// A request to set a VM's MSR filter: `KVM_X86_SET_MSR_FILTER`.
    Filter,
    /// A request to run a vCPU: `KVM_RUN`. Without the library, the VMM would get the exits that the policy
    /// causes.
    Run,
}

const KVM_CREATE_VM: u32 = 0xae01;
const KVM_RUN: u32 = 0xae80;
const REQUESTS: [u32; 4] = [
    KVM_RUN,
    KVM_CREATE_VM,
    CallerWidth::Bits64.ioctl_number(),
    CallerWidth::Bits32.ioctl_number(),
];

/// The instructions of the kernel's classic BPF (`linux/filter.h`) that the filter uses.
mod bpf {
    /// The instruction that loads the 32-bit word of `struct seccomp_data` at an offset.
    pub(super) const LOAD: u16 = 0x20;
    pub(super) const JUMP_IF_EQUAL: u16 = 0x15;
    pub(super) const RETURN: u16 = 0x06;

    /// Offsets of fields in `struct seccomp_data`, in bytes.
    pub(super) const NUMBER: u32 = 0;
    pub(super) const ARCH: u32 = 4;
    /// The offset of the low half of the request number. KVM ignores the high half.
    pub(super) const REQUEST: u32 = 16 + 8;
    pub(super) const COOKIE_LOW: u32 = 16 + 3 * 8;
    pub(super) const COOKIE_HIGH: u32 = COOKIE_LOW + 4;
}

/// The architectures of system calls, `AUDIT_ARCH_*` (`linux/audit.h`), and the number of ioctl(2) for each
/// of them.
const X86_64: u32 = 0xc000_003e;
const I386: u32 = 0x4000_0003;
const IOCTL: u32 = 16;
const IOCTL_OF_I386: u32 = 54;
const IOCTL_OF_X32: u32 = 0x4000_0000 + 514;

const NEW_LISTENER: u64 = 1 << 3;
const RET_ALLOW: u32 = 0x7fff_0000;
const RET_USER_NOTIF: u32 = 0x7fc0_0000;
const RET_EPERM: u32 = 0x0005_0000 | libc::EPERM.cast_unsigned();

/// Returns the instructions of the filter. `refuse` is the filter's result for a guarded request without the
/// cookie.
fn instructions(cookie: u64, refuse: u32) -> [libc::sock_filter; 25] {
    const REFUSE: usize = 23;
    const ALLOW: usize = 24;
    let [low, high] =
        [cookie & 0xffff_ffff, cookie >> 32].map(|half| u32::try_from(half).unwrap_or(0));
    let load = |offset| instruction(bpf::LOAD, 0, 0, offset);
    // Each jump is given its own position, as the kernel counts from the next instruction.
    let equal = |at: usize, value, yes: usize, no: usize| {
        let distance = |to: usize| u8::try_from(to - at - 1).unwrap_or(0);
        instruction(bpf::JUMP_IF_EQUAL, distance(yes), distance(no), value)
    };
    let [run, vm, filter, filter_of_32] = REQUESTS;
    [
        load(bpf::ARCH),
        equal(1, X86_64, 5, 2),
        equal(2, I386, 3, ALLOW),
        load(bpf::NUMBER),
        equal(4, IOCTL_OF_I386, 9, ALLOW),
        load(bpf::NUMBER),
        equal(6, IOCTL, 14, 7),
        equal(7, IOCTL_OF_X32, 9, 8),
        instruction(bpf::RETURN, 0, 0, RET_ALLOW),
        // The requests of 32-bit and x32 programs, which cannot carry a cookie.
        load(bpf::REQUEST),
        equal(10, run, REFUSE, 11),
        equal(11, vm, REFUSE, 12),
        equal(12, filter, REFUSE, 13),
        equal(13, filter_of_32, REFUSE, ALLOW),
        // The requests of 64-bit programs, which can.
        load(bpf::REQUEST),
        equal(15, run, 19, 16),
        equal(16, vm, 19, 17),
        equal(17, filter, 19, 18),
        equal(18, filter_of_32, 19, ALLOW),
        load(bpf::COOKIE_LOW),
        equal(20, low, 21, REFUSE),
        load(bpf::COOKIE_HIGH),
        equal(22, high, ALLOW, REFUSE),
        instruction(bpf::RETURN, 0, 0, refuse),
        instruction(bpf::RETURN, 0, 0, RET_ALLOW),
    ]
}

const fn instruction(code: u16, yes: u8, no: u8, value: u32) -> libc::sock_filter {
    libc::sock_filter {
        code,
        jt: yes,
        jf: no,
        k: value,
    }
}

impl Door {
    /// Sets the filter for this thread and for every thread and process that it starts.
    ///
    /// # Errors
    /// The kernel does not accept the filter.
    pub(super) fn close(cookie: u64) -> Result<Self, Failure> {
        let heard = with_privileges(|| seccomp(cookie, RET_USER_NOTIF, NEW_LISTENER));
        let door = match heard {
            // SAFETY: the kernel has just opened the descriptor, and nobody else knows it.
            Ok(listener) => Ok(Self::Heard(unsafe { OwnedFd::from_raw_fd(listener) })),
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {
                with_privileges(|| seccomp(cookie, RET_EPERM, 0)).map(|_| Self::Silent)
            }
            Err(error) => Err(error),
        };
        door.map_err(|error| {
            Failure::Host(format!(
                "the kernel takes no seccomp filter, by which VMs without the policy are refused: {error}; --fail-open does without"
            ))
        })
    }
}

/// Calls `act`, which sets a seccomp filter and so needs `CAP_SYS_ADMIN` or `no_new_privs`. Without the
/// capability the function first sets `no_new_privs`: execve(2) then grants no privileges.
fn with_privileges<T>(act: impl Fn() -> io::Result<T>) -> io::Result<T> {
    match act() {
        Err(error) if error.raw_os_error() == Some(libc::EACCES) => {
            // SAFETY: PR_SET_NO_NEW_PRIVS takes numbers.
            let promised = unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) };
            if promised != 0 {
                return Err(io::Error::last_os_error());
            }
            act()
        }
        done => done,
    }
}

fn seccomp(cookie: u64, refuse: u32, flags: u64) -> io::Result<i32> {
    let mut filter = instructions(cookie, refuse);
    let program = libc::sock_fprog {
        len: u16::try_from(filter.len()).unwrap_or(0),
        filter: filter.as_mut_ptr(),
    };
    // SAFETY: the kernel copies `len` instructions, which `filter` has.
    let answer = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            flags,
            &raw const program,
        )
    };
    if answer < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(i32::try_from(answer).unwrap_or(-1))
}

/// Receives the next refused request from the listener. Returns `None` if the thread that made the request
/// was killed meanwhile.
pub(super) fn take(listener: &OwnedFd) -> Option<Knock> {
    let request = libc::_IOWR::<libc::seccomp_notif>(b'!'.into(), 0);
    let mut held = libc::seccomp_notif {
        id: 0,
        pid: 0,
        flags: 0,
        data: libc::seccomp_data {
            nr: 0,
            arch: 0,
            instruction_pointer: 0,
            args: [0; 6],
        },
    };
    // SAFETY: the kernel writes a seccomp_notif into `held`, which is all zeros before, as the kernel
    // demands.
    if unsafe { libc::ioctl(listener.as_raw_fd(), request, &raw mut held) } != 0 {
        return None;
    }
    let wish = match held.data.args[1] & 0xffff_ffff {
        request if request == u64::from(KVM_CREATE_VM) => Wish::Vm,
        request if request == u64::from(KVM_RUN) => Wish::Run,
        _ => Wish::Filter,
    };
    Some(Knock {
        id: held.id,
        thread: held.pid,
        wish,
    })
}

/// Answers a waiting request with EPERM.
pub(super) fn refuse(listener: &OwnedFd, knock: Knock) {
    let request = libc::_IOWR::<libc::seccomp_notif_resp>(b'!'.into(), 1);
    let mut answer = libc::seccomp_notif_resp {
        id: knock.id,
        val: 0,
        error: -libc::EPERM,
        flags: 0,
    };
    // SAFETY: the kernel reads a seccomp_notif_resp, which `answer` is. The call fails if the thread is
    // gone.
    let _ = unsafe { libc::ioctl(listener.as_raw_fd(), request, &raw mut answer) };
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The fields of `struct seccomp_data` that the filter reads of a system call.
    #[derive(Clone, Copy)]
    struct Call {
        arch: u32,
        number: u32,
        request: u64,
        cookie: u64,
    }

    const COOKIE: u64 = 0x1234_5678_9abc_def0;
    const REFUSED: u32 = 77;

    /// Returns the filter's result for a system call. The function interprets the instructions by the
    /// kernel's rules.
    fn answer(call: Call) -> u32 {
        let filter = instructions(COOKIE, REFUSED);
        let (mut at, mut loaded) = (0, 0);
        loop {
            let one = filter[at];
            at += 1;
            match one.code {
                bpf::LOAD => {
                    loaded = match one.k {
                        bpf::NUMBER => call.number,
                        bpf::ARCH => call.arch,
                        bpf::REQUEST => u32::try_from(call.request & 0xffff_ffff).unwrap(),
                        bpf::COOKIE_LOW => u32::try_from(call.cookie & 0xffff_ffff).unwrap(),
                        bpf::COOKIE_HIGH => u32::try_from(call.cookie >> 32).unwrap(),
                        other => panic!("offset {other}"),
                    }
                }
                bpf::JUMP_IF_EQUAL => {
                    at += usize::from(if loaded == one.k { one.jt } else { one.jf });
                }
                bpf::RETURN => return one.k,
                other => panic!("code {other}"),
            }
        }
    }

    #[test]
    fn guarded_kvm_request_without_the_cookie_is_refused_by_seccomp_filter() {
        let ways = [
            (X86_64, IOCTL),
            (X86_64, IOCTL_OF_X32),
            (I386, IOCTL_OF_I386),
        ];
        for (arch, number) in ways {
            for request in REQUESTS.map(u64::from) {
                for cookie in [0, COOKIE ^ 1, COOKIE ^ 1 << 40] {
                    for high in [0, 0xdead << 32] {
                        let call = Call {
                            arch,
                            number,
                            request: request | high,
                            cookie,
                        };
                        assert_eq!(answer(call), REFUSED, "{arch:#x} {number} {request:#x}");
                    }
                }
            }
        }
    }

    #[test]
    fn seccomp_filter_allows_other_system_calls_and_requests_with_the_cookie() {
        let passes = |arch, number, request, cookie| {
            let call = Call {
                arch,
                number,
                request,
                cookie,
            };
            assert_eq!(answer(call), RET_ALLOW, "{arch:#x} {number} {request:#x}");
        };
        for request in REQUESTS.map(u64::from) {
            passes(X86_64, IOCTL, request, COOKIE);
            // close(2) of i386, and so on.
            passes(I386, 6, request, 0);
            passes(X86_64, 6, request, 0);
        }
        for request in [0xae03, 0xae41, 0x5401] {
            passes(X86_64, IOCTL, request, 0);
            passes(X86_64, IOCTL_OF_X32, request, 0);
            passes(I386, IOCTL_OF_I386, request, 0);
        }
    }
}
