//! Unsafe: calls fork(2) and execve(2), and uses descriptors by their numbers.
//!
//! The processes of a run: this process, which becomes the VMM, and the watcher.
#![expect(
    unsafe_code,
    reason = "fork and execve have no safe form that keeps the VMM's signals as they are"
)]

use std::env;
use std::ffi::{CString, OsStr, OsString};
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::ptr;

use msrgate_state::lowest_library_fd;
use rustix::io::{FdFlags, fcntl_dupfd_cloexec, fcntl_setfd};
use rustix::process::{Pid, Resource, getrlimit};
use rustix::rand::{GetRandomFlags, getrandom};

use crate::descriptors;
use crate::failure::Failure;
use crate::named::name;

/// The VMM's program, with the arguments to run it with.
#[derive(Debug)]
pub(super) struct Vmm {
    pub(super) path: PathBuf,
    arguments: Vec<OsString>,
}

impl Vmm {
    /// Finds the VMM's program by the first word of the VMM's command line, as a shell does.
    ///
    /// # Errors
    /// No program has this name, or its file may not be executed.
    pub(super) fn find(arguments: &[OsString]) -> Result<Self, Failure> {
        let typed = arguments
            .first()
            .map_or(OsStr::new(""), |first| first.as_os_str());
        let not_run = |status, why: &str| Failure::NotRun {
            status,
            what: name(Path::new(typed)),
            why: why.to_owned(),
        };
        if typed.is_empty() {
            return Err(not_run(127, "no such program"));
        }
        let candidates: Vec<PathBuf> = if typed.as_bytes().contains(&b'/') {
            vec![typed.into()]
        } else {
            let path = env::var_os("PATH").unwrap_or_else(|| "/bin:/usr/bin".into());
            env::split_paths(&path)
                .map(|folder| folder.join(typed))
                .collect()
        };
        let is_there = |path: &&PathBuf| path.metadata().is_ok_and(|file| !file.is_dir());
        let mut there = candidates.iter().filter(is_there);
        let Some(first) = there.clone().next() else {
            let why = match candidates.as_slice() {
                [only] if only.is_dir() => return Err(not_run(126, "this is a folder")),
                [only] => only.metadata().err().map(|error| error.to_string()),
                _ => None,
            };
            return Err(not_run(
                127,
                &why.unwrap_or_else(|| "no such program in PATH".to_owned()),
            ));
        };
        let may_run = |path: &&PathBuf| {
            path.metadata()
                .is_ok_and(|file| file.permissions().mode() & 0o111 != 0)
        };
        let Some(path) = there.find(may_run) else {
            let why = format!("{} may not be run: its mode has no x", name(first));
            return Err(not_run(126, &why));
        };
        Ok(Self {
            path: path.clone(),
            arguments: arguments.to_vec(),
        })
    }

    /// Replaces this process by the VMM's program by execve(2), with `variables` added to the environment.
    /// The function returns only on failure.
    pub(super) fn become_it(&self, variables: &[(&str, OsString)]) -> Failure {
        let failed = |why: String| Failure::NotRun {
            status: 126,
            what: name(&self.path),
            why,
        };
        let is_replaced = |key: &OsStr| variables.iter().any(|(own, _)| key == *own);
        let others = env::vars_os().filter(|(key, _)| !is_replaced(key));
        let own = variables
            .iter()
            .map(|(key, value)| (OsString::from(key), value.clone()));
        let environment = others.chain(own).map(|(mut variable, value)| {
            variable.push("=");
            variable.push(value);
            variable
        });
        let path = CString::new(self.path.as_os_str().as_bytes());
        let strings = |all: &mut dyn Iterator<Item = OsString>| {
            all.map(|one| CString::new(one.into_vec()))
                .collect::<Result<Vec<_>, _>>()
        };
        let arguments = strings(&mut self.arguments.iter().cloned());
        let environment = strings(&mut environment.into_iter());
        let (Ok(path), Ok(arguments), Ok(environment)) = (path, arguments, environment) else {
            return failed("an argument has a zero byte".to_owned());
        };
        let pointers = |all: &[CString]| {
            let pointers = all.iter().map(|one| one.as_ptr());
            pointers.chain([ptr::null()]).collect::<Vec<_>>()
        };
        let (arguments_of, environment_of) = (pointers(&arguments), pointers(&environment));
        make_room_for_library();
        descriptors::as_before_main();
        // SAFETY: the strings end with a zero byte and the lists with a null pointer, and all of them live
        // on this stack.
        unsafe {
            libc::execve(
                path.as_ptr(),
                arguments_of.as_ptr(),
                environment_of.as_ptr(),
            )
        };
        failed(io::Error::last_os_error().to_string())
    }
}

/// Enlarges this process's descriptor table, which the VMM inherits, to hold the library's own descriptors.
/// In a VMM, which has several threads, the growth of the table would have to wait for all processors
/// (`expand_fdtable` in fs/file.c): 20 ms were measured. If the limit of descriptors leaves no room, the
/// table stays as it is.
fn make_room_for_library() {
    let limit = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    // The duplicate is closed at once. The table does not shrink.
    let _ = fcntl_dupfd_cloexec(standard_error(), lowest_library_fd(limit));
}

/// Returns a random number that no other process can guess.
pub(super) fn random() -> Result<u64, Failure> {
    let mut bytes = [0; 8];
    match getrandom(&mut bytes, GetRandomFlags::empty()) {
        Ok(8) => Ok(u64::from_le_bytes(bytes)),
        _ => Err(Failure::Host(
            "the kernel gives no random numbers".to_owned(),
        )),
    }
}

/// Runs `act` in a child process, and returns the child's process ID. The child exits with the status that
/// `act` returns.
///
/// # Errors
/// The kernel makes no process.
pub(in crate::commands) fn child(act: impl FnOnce() -> u8) -> io::Result<Pid> {
    // SAFETY: this process has one thread, so the child may call any function.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => {
            let status = act();
            // SAFETY: _exit runs no destructor and no handler of the parent.
            unsafe { libc::_exit(status.into()) }
        }
        child => Pid::from_raw(child).ok_or_else(|| io::ErrorKind::Other.into()),
    }
}

/// Runs `act` in a process that is not a child of this process and has no terminal. The VMM will replace
/// this process, and must not have to reap a child that it does not know.
///
/// # Errors
/// The kernel makes no process.
pub(super) fn apart(act: impl FnOnce()) -> io::Result<()> {
    // SAFETY: this process has one thread, so the child may call any function.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => {
            // SAFETY: setsid(2) has no argument.
            unsafe { libc::setsid() };
            // SAFETY: the child has one thread, too.
            let status = match unsafe { libc::fork() } {
                -1 => io::Error::last_os_error().raw_os_error().unwrap_or(1),
                0 => {
                    ignore_signals();
                    act();
                    0
                }
                _ => 0,
            };
            // SAFETY: _exit runs no destructor and no handler of the parent.
            unsafe { libc::_exit(status) }
        }
        child => {
            let mut status = 0;
            // SAFETY: waitpid(2) writes the status. The child ends at once; if the process ignores SIGCHLD,
            // the call fails, and the status stays 0.
            unsafe { libc::waitpid(child, &raw mut status, 0) };
            match libc::WEXITSTATUS(status) {
                0 => Ok(()),
                errno => Err(io::Error::from_raw_os_error(errno)),
            }
        }
    }
}

/// Ignores the signals that would end the watcher before the VMM, because they are sent to the VMM's process
/// group, and the signals that the watcher's own files raise.
fn ignore_signals() {
    for signal in [
        libc::SIGINT,
        libc::SIGQUIT,
        libc::SIGTERM,
        libc::SIGHUP,
        libc::SIGPIPE,
        // A file's size limit, and another process that opens a file on which this one has a lease.
        libc::SIGXFSZ,
        libc::SIGIO,
    ] {
        // SAFETY: SIG_IGN sets no handler.
        unsafe { libc::signal(signal, libc::SIG_IGN) };
    }
}

/// Closes all descriptors except `kept` and standard error, and opens `/dev/null` as 0 and 1. The watcher
/// thus keeps no pipe open whose reader waits for the VMM's end.
pub(super) fn keep_only(kept: &[RawFd]) {
    let mut kept: Vec<RawFd> = kept.iter().copied().chain([libc::STDERR_FILENO]).collect();
    kept.sort_unstable();
    let ends = kept.iter().skip(1).map(|next| next - 1).chain([RawFd::MAX]);
    for (before, last) in kept.iter().zip(ends) {
        close_range(before + 1, last);
    }
    for fd in [libc::STDIN_FILENO, libc::STDOUT_FILENO] {
        replace_by_nothing(fd);
    }
    // The watcher must not keep a folder busy that is to be unmounted.
    let _ = env::set_current_dir("/");
}

/// Closes the descriptors from `first` to `last`. The system call for it opens none: this process may have as many as its limit allows.
fn close_range(first: RawFd, last: RawFd) {
    if first > last {
        return;
    }
    // SAFETY: close_range(2) takes numbers and flags. This process is the watcher, which uses no descriptor in this range.
    if unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) } == 0 {
        return;
    }
    // The system call is as old as KVM's filter, but a container's seccomp filter may not know it.
    let open = fs::read_dir("/proc/self/fd").into_iter().flatten();
    let numbers = open.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    let numbers: Vec<RawFd> = numbers.collect();
    for fd in numbers.into_iter().filter(|fd| (first..=last).contains(fd)) {
        // SAFETY: as above.
        unsafe { libc::close(fd) };
    }
}

/// Makes the descriptor `fd` one of `/dev/null`.
pub(super) fn replace_by_nothing(fd: RawFd) {
    if let Ok(nothing) = File::options().read(true).write(true).open("/dev/null") {
        // SAFETY: dup2(2) takes numbers. No value owns the descriptor that it closes.
        unsafe { libc::dup2(nothing.as_raw_fd(), fd) };
    }
}

/// Duplicates a descriptor so that the VMM and its children inherit it. The new number is above those that
/// shell scripts use.
///
/// # Errors
/// The limit of descriptors leaves no room for one more.
pub(super) fn inherited(fd: impl AsFd) -> io::Result<OwnedFd> {
    const HIGH: u64 = 1000;
    let limit = getrlimit(Resource::Nofile).current.unwrap_or(HIGH);
    let lowest = RawFd::try_from((limit / 2).min(HIGH)).unwrap_or(0);
    let copy = fcntl_dupfd_cloexec(fd, lowest)?;
    fcntl_setfd(&copy, FdFlags::empty())?;
    Ok(copy)
}

/// Returns standard error as a descriptor.
pub(super) fn standard_error() -> BorrowedFd<'static> {
    // SAFETY: the descriptor is open from before `main` on, with `/dev/null` in its place if it was closed.
    unsafe { BorrowedFd::borrow_raw(libc::STDERR_FILENO) }
}
