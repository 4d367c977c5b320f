//! Unsafe: makes system calls by the `syscall` instruction.
//!
//! This library replaces the C library's `ioctl` and `close` in this process, so it makes the system calls
//! itself. The run's seccomp filter allows some requests only to this library: the library passes the run's
//! cookie in R10, a register that ioctl(2) does not use.
#![expect(unsafe_code, reason = "there is no function below this one to call")]

use std::arch::asm;
use std::ffi::{c_int, c_long, c_ulong, c_void};
use std::mem::MaybeUninit;
use std::os::fd::{FromRawFd as _, OwnedFd, RawFd};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use msrgate_filter::abi::{Fault, UserAddress, UserMemory};
use msrgate_state::lowest_library_fd;

/// The cookie of this run, by which the run's seccomp filter recognises the library's calls; 0 outside of a
/// run.
static COOKIE: AtomicU64 = AtomicU64::new(0);

/// Sets the cookie that the calls of [`guarded_ioctl`] carry from now on.
pub(crate) fn set_cookie(cookie: u64) {
    COOKIE.store(cookie, Ordering::Relaxed);
}

/// The result of a system call: a number that is not negative, or an error number with a minus sign.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Returned(i64);

impl Returned {
    /// Makes the result of a call that failed with this error number.
    pub(crate) const fn error(errno: c_int) -> Self {
        Self(-(errno as i64))
    }

    /// The result 0 of a system call that succeeded.
    pub(crate) const DONE: Self = Self(0);

    /// Returns the number that a system call has returned, if the call succeeded.
    ///
    /// # Errors
    /// The system call failed with this error number.
    pub(crate) fn get(self) -> Result<i32, c_int> {
        match self.0 {
            -4095..=-1 => Err(c_int::try_from(-self.0).unwrap_or(libc::EIO)),
            value => Ok(i32::try_from(value).unwrap_or(i32::MAX)),
        }
    }

    /// Returns the result in the way of the C library's functions: if the call failed, sets `errno` and
    /// returns -1.
    pub(crate) fn as_c(self) -> c_int {
        self.get().unwrap_or_else(|errno| {
            // SAFETY: the function has no condition; the C library has a place for each thread's errno.
            let place = unsafe { libc::__errno_location() };
            // SAFETY: the place is valid, and only this thread writes its errno.
            unsafe { *place = errno };
            -1
        })
    }
}

/// Makes a system call.
///
/// # Safety
/// The arguments meet the contract of the system call with this number.
unsafe fn call(number: c_long, arguments: [u64; 6]) -> Returned {
    let [first, second, third, fourth, fifth, sixth] = arguments;
    let returned: i64;
    // SAFETY: the kernel changes RAX, RCX and R11, and memory for which the caller is responsible.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") number => returned,
            in("rdi") first,
            in("rsi") second,
            in("rdx") third,
            in("r10") fourth,
            in("r8") fifth,
            in("r9") sixth,
            lateout("rcx") _,
            lateout("r11") _,
            options(nostack),
        );
    }
    Returned(returned)
}

/// Returns a descriptor in the form of a system call's argument.
fn number(fd: RawFd) -> u64 {
    i64::from(fd).cast_unsigned()
}

/// Makes the ioctl(2) call that the VMM asked for, without the cookie.
///
/// # Safety
/// `argument` is what `request` asks for, or an address that the kernel refuses.
#[inline]
pub(crate) unsafe fn ioctl(fd: RawFd, request: c_ulong, argument: *mut c_void) -> Returned {
    let argument = argument.expose_provenance() as u64;
    // SAFETY: the caller is responsible for `request` and `argument`.
    unsafe { call(libc::SYS_ioctl, [number(fd), request, argument, 0, 0, 0]) }
}

/// Makes an ioctl(2) call with the cookie.
///
/// # Safety
/// The contract is that of [`ioctl`].
#[inline]
pub(crate) unsafe fn guarded_ioctl(fd: RawFd, request: c_ulong, argument: *mut c_void) -> Returned {
    let argument = argument.expose_provenance() as u64;
    let cookie = COOKIE.load(Ordering::Relaxed);
    // SAFETY: the caller is responsible for `request` and `argument`.
    unsafe {
        call(
            libc::SYS_ioctl,
            [number(fd), request, argument, cookie, 0, 0],
        )
    }
}

/// Makes the gate's ioctl(2) calls, in place of the C library's function.
///
/// # Safety
/// The contract is that of [`ioctl`].
pub(crate) unsafe extern "C" fn ioctl_of_gate(
    fd: c_int,
    request: c_ulong,
    argument: *mut c_void,
) -> c_int {
    // SAFETY: the caller is responsible for `request` and `argument`.
    unsafe { guarded_ioctl(fd, request, argument) }.as_c()
}

/// Closes a descriptor by close(2).
pub(crate) fn close(fd: RawFd) -> Returned {
    // SAFETY: close(2) accesses no memory. The caller says that the descriptor may be closed.
    unsafe { call(libc::SYS_close, [number(fd), 0, 0, 0, 0, 0]) }
}

/// Returns the process ID of this process.
pub(crate) fn process() -> u32 {
    // SAFETY: getpid(2) accesses no memory and does not fail.
    let pid = unsafe { call(libc::SYS_getpid, [0; 6]) };
    pid.get()
        .ok()
        .and_then(|pid| u32::try_from(pid).ok())
        .unwrap_or(0)
}

/// Returns the thread ID of the calling thread. The main thread's ID is the process ID.
pub(crate) fn thread() -> u32 {
    // SAFETY: gettid(2) accesses no memory and does not fail.
    let id = unsafe { call(libc::SYS_gettid, [0; 6]) };
    id.get()
        .ok()
        .and_then(|id| u32::try_from(id).ok())
        .unwrap_or(0)
}

/// The device and inode number of the file that was standard error before the VMM's `main`, if there was
/// one.
static STANDARD_ERROR: OnceLock<(u64, u64)> = OnceLock::new();

/// Notes which file is standard error now. A VMM may later close standard error, and open a guest's disk
/// under the same number.
pub(crate) fn note_standard_error() {
    if let Some(file) = file_of(libc::STDERR_FILENO) {
        let _ = STANDARD_ERROR.set(file);
    }
}

/// Returns the device and inode number of a descriptor's file.
fn file_of(fd: RawFd) -> Option<(u64, u64)> {
    let mut stat = MaybeUninit::<libc::stat>::uninit();
    // SAFETY: fstat(2) writes a stat into `stat`, which has room for one.
    let answer = unsafe { libc::fstat(fd, stat.as_mut_ptr()) };
    // SAFETY: fstat(2) has written the value if it returned 0.
    (answer == 0)
        .then(|| unsafe { stat.assume_init() })
        .map(|stat| (stat.st_dev, stat.st_ino))
}

/// Prints a sentence to the VMM's standard error, if standard error is still the file with which the VMM was
/// started.
pub(crate) fn say(text: &str) {
    if file_of(libc::STDERR_FILENO).as_ref() != STANDARD_ERROR.get()
        || STANDARD_ERROR.get().is_none()
    {
        return;
    }
    let line = format!("msrgate: {text}\n");
    let bytes = line.as_bytes();
    let arguments = [2, bytes.as_ptr().addr() as u64, bytes.len() as u64, 0, 0, 0];
    // SAFETY: write(2) reads `bytes.len()` bytes of `line`.
    let _ = unsafe { call(libc::SYS_write, arguments) };
}

/// Ends this process at once by SIGKILL. The first process of a PID namespace ignores a SIGKILL from itself,
/// so the function then calls `exit_group(2)`.
pub(crate) fn end_process() -> ! {
    const KILLED: u64 = 137;
    let pid = u64::from(process());
    // SAFETY: kill(2) accesses no memory.
    let _ = unsafe { call(libc::SYS_kill, [pid, libc::SIGKILL as u64, 0, 0, 0, 0]) };
    loop {
        // SAFETY: exit_group(2) does not return.
        let _ = unsafe { call(libc::SYS_exit_group, [KILLED, 0, 0, 0, 0, 0]) };
    }
}

/// Duplicates a descriptor for the library, with a number of at least `lowest`.
pub(crate) fn duplicate(fd: RawFd, lowest: RawFd) -> std::io::Result<OwnedFd> {
    let asked = [
        number(fd),
        libc::F_DUPFD_CLOEXEC as u64,
        number(lowest),
        0,
        0,
        0,
    ];
    // SAFETY: F_DUPFD_CLOEXEC takes numbers, and accesses no memory.
    match unsafe { call(libc::SYS_fcntl, asked) }.get() {
        // SAFETY: the kernel has just opened the descriptor, and nobody else knows it.
        Ok(new) => Ok(unsafe { OwnedFd::from_raw_fd(new) }),
        Err(errno) => Err(std::io::Error::from_raw_os_error(errno)),
    }
}

/// The relation of two descriptors of this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Compared {
    /// Both descriptors have the same open file description.
    Same,
    Other,
    /// At least one of the two numbers is not an open descriptor.
    Closed,
    /// The kernel has no call that compares descriptors, or refuses the call.
    Unknown,
}

/// Compares the file descriptions of two descriptors of this process.
pub(crate) fn compare(one: RawFd, other: RawFd) -> Compared {
    /// `F_DUPFD_QUERY` (`linux/fcntl.h`), since Linux 6.10.
    const DUPFD_QUERY: u64 = 1024 + 3;
    const KCMP_FILE: u64 = 0;
    let asked = [number(one), DUPFD_QUERY, number(other), 0, 0, 0];
    // SAFETY: F_DUPFD_QUERY takes numbers, accesses no memory and changes nothing.
    let answer = match unsafe { call(libc::SYS_fcntl, asked) }.get() {
        Err(libc::EINVAL) => {
            let pid = u64::from(process());
            let asked = [pid, pid, KCMP_FILE, number(one), number(other), 0];
            // SAFETY: kcmp(2) takes numbers, and changes nothing.
            let compared = unsafe { call(libc::SYS_kcmp, asked) };
            compared.get().map(|order| i32::from(order == 0))
        }
        answer => answer,
    };
    match answer {
        Ok(1) => Compared::Same,
        Ok(_) => Compared::Other,
        Err(libc::EBADF) => Compared::Closed,
        Err(_) => Compared::Unknown,
    }
}

/// Returns true if a descriptor is a VM's or a vCPU's, according to the link of the descriptor in `/proc`.
/// The function allocates nothing.
pub(crate) fn is_of_kvm(fd: RawFd) -> bool {
    const NAME: &[u8] = b"anon_inode:kvm-v";
    let mut path = *b"/proc/self/fd/0000000000\0";
    let mut rest = fd.unsigned_abs();
    for digit in path[14..24].iter_mut().rev() {
        *digit = b'0' + u8::try_from(rest % 10).unwrap_or(0);
        rest /= 10;
    }
    // The kernel takes a number without leading zeros only.
    let zeros = path[14..23].iter().take_while(|digit| **digit == b'0');
    let zeros = zeros.count();
    path.copy_within(14 + zeros.., 14);
    let mut name = [0; NAME.len()];
    let asked = [
        path.as_ptr().expose_provenance() as u64,
        name.as_mut_ptr().expose_provenance() as u64,
        name.len() as u64,
        0,
        0,
        0,
    ];
    // SAFETY: readlink(2) reads a path that ends in a zero, and writes at most `name.len()` bytes into `name`.
    let read = unsafe { call(libc::SYS_readlink, asked) };
    read.get().is_ok() && name == NAME
}

/// Returns the number of this process's open descriptors, or `None` if the kernel does not tell, as before
/// Linux 6.2.
pub(crate) fn open_fds() -> Option<u64> {
    let folder = std::fs::metadata("/proc/self/fd").ok()?;
    Some(folder.len()).filter(|count| *count > 0)
}

/// The memory of this process, as a place to read arguments from. The VMM gives the addresses, and reading
/// at an address without memory returns an error and does not raise SIGSEGV.
pub(crate) struct OwnMemory;

impl UserMemory for OwnMemory {
    fn read(&self, from: UserAddress, into: &mut [u8]) -> Result<(), Fault> {
        let local = [into.as_mut_ptr().addr() as u64, into.len() as u64];
        let remote = [from.get(), into.len() as u64];
        let arguments = [
            process().into(),
            local.as_ptr().addr() as u64,
            1,
            remote.as_ptr().addr() as u64,
            1,
            0,
        ];
        into.as_mut_ptr().expose_provenance();
        // SAFETY: process_vm_readv(2) of this process writes at most `into.len()` bytes into `into`, and
        // checks the remote address. Both vectors are struct iovec: an address and a length.
        let read = unsafe { call(libc::SYS_process_vm_readv, arguments) };
        match read.get() {
            Ok(count) if usize::try_from(count) == Ok(into.len()) => Ok(()),
            _ => Err(Fault),
        }
    }
}

/// Returns the process's present limit of descriptor numbers: new descriptors get lower numbers.
pub(crate) fn fd_limit() -> RawFd {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: getrlimit(2) writes a rlimit, which `limit` is.
    let failed = unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) } != 0;
    let limit = if failed { 0 } else { limit.rlim_cur };
    RawFd::try_from(limit).unwrap_or(RawFd::MAX)
}

/// The lowest number for the library's own descriptors, computed from the limit that the process had at
/// first. The library takes lower numbers only when no higher one is free.
pub(crate) fn lowest_fd() -> RawFd {
    static LOWEST: OnceLock<RawFd> = OnceLock::new();
    *LOWEST.get_or_init(|| lowest_library_fd(u64::try_from(fd_limit()).unwrap_or(0)))
}
