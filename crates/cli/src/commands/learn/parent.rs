//! The parent of the VMM: it passes signals on, ends the VMM where `--until` says, and waits for its end.
//!
//! A VMM that goes into the background leaves its first process, and becomes a child of this one, which is a
//! subreaper: see `PR_SET_CHILD_SUBREAPER(2const)`.

use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use memchr::memmem;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitOptions, WaitStatus, getpgid, getpgrp, getpid, kill_process,
    pidfd_open, set_child_subreaper, wait,
};
use rustix::stdio::dup2_stdout;
use rustix::termios::tcgetpgrp;
use signal_hook::low_level::pipe;

use super::super::exec::{Launch, child};
use super::begin;
use crate::descriptors;
use crate::failure::{EXIT_NOT_BEHIND, Failure};
use crate::until::Until;

/// The time between TERM and KILL for a VMM that does not end.
const GRACE: Duration = Duration::from_secs(10);

/// The signals that are passed on. A terminal sends INT and QUIT to the VMM itself.
const PASSED_ON: [Signal; 6] = [
    Signal::TERM,
    Signal::HUP,
    Signal::USR1,
    Signal::USR2,
    Signal::INT,
    Signal::QUIT,
];

/// Runs the VMM in a child, waits until the child and all that it has left behind have ended, and returns the exit
/// status as a shell counts it: that of the first of them that did not end with 0.
///
/// # Errors
/// The kernel lacks something that the parent needs.
pub(super) fn run<'a>(
    launch: impl FnOnce() -> Launch<'a>,
    until: Option<&Until>,
) -> Result<u8, Failure> {
    let failed =
        |error: io::Error| Failure::Host(format!("the VMM cannot be watched by a parent: {error}"));
    let (console, output) = match until {
        Some(Until::Text(text)) => {
            let (reader, writer) =
                pipe_with(PipeFlags::CLOEXEC).map_err(|error| failed(error.into()))?;
            (Some(Console::new(reader, text)), Some(writer))
        }
        _ => (None, None),
    };
    set_child_subreaper(Some(getpid())).map_err(|error| failed(error.into()))?;
    // Signals that come while there is no child yet wait in the sockets.
    let signals = signals().map_err(failed)?;
    let pid = child(|| {
        if let Some(output) = &output
            && dup2_stdout(output).is_err()
        {
            return EXIT_NOT_BEHIND;
        }
        begin(launch())
    })
    .map_err(failed)?;
    drop(output);
    let mut parent = Parent {
        children: vec![Child::of(pid).map_err(failed)?],
        status: 0,
        signals,
        console,
        ends_at: match until {
            Some(Until::Time(time)) => Instant::now().checked_add(*time),
            _ => None,
        },
        is_terminated: false,
    };
    while !parent.children.is_empty() {
        parent.turn().map_err(failed)?;
    }
    Ok(parent.status())
}

/// Returns a socket for each signal to pass on. A signal that the caller ignores stays ignored.
fn signals() -> io::Result<Vec<(Signal, UnixStream)>> {
    let ignored = ignored();
    let mut signals = Vec::new();
    for signal in PASSED_ON {
        if ignored >> (signal.as_raw() - 1) & 1 == 1 {
            continue;
        }
        let (reader, writer) = UnixStream::pair()?;
        reader.set_nonblocking(true)?;
        pipe::register(signal.as_raw(), writer)?;
        signals.push((signal, reader));
    }
    Ok(signals)
}

/// Returns the set of ignored signals: bit 0 is signal 1.
fn ignored() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let set = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    set.and_then(|set| u64::from_str_radix(set.trim(), 16).ok())
        .unwrap_or(0)
}

/// A process of the run that is a child of this one.
struct Child {
    pid: Pid,
    pidfd: OwnedFd,
}

impl Child {
    fn of(pid: Pid) -> io::Result<Self> {
        let pidfd = pidfd_open(pid, PidfdFlags::empty())?;
        Ok(Self { pid, pidfd })
    }
}

struct Parent {
    /// The first process, and later those that it has left behind.
    children: Vec<Child>,
    /// The exit status so far.
    status: u8,
    signals: Vec<(Signal, UnixStream)>,
    console: Option<Console>,
    /// The time at which the child gets TERM, or KILL if it has got TERM.
    ends_at: Option<Instant>,
    is_terminated: bool,
}

impl Parent {
    /// Waits for something to happen, and handles it.
    fn turn(&mut self) -> io::Result<()> {
        let left = self
            .ends_at
            .map(|at| at.saturating_duration_since(Instant::now()));
        let pause = left.map(|left| Timespec {
            tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(left.subsec_nanos()),
        });
        let signals = self.signals.iter();
        let mut polled: Vec<_> = signals
            .map(|(_, one)| PollFd::new(one, PollFlags::IN))
            .collect();
        let children = self.children.iter();
        polled.extend(children.map(|one| PollFd::new(&one.pidfd, PollFlags::IN)));
        let console = self.console.as_ref().map(|console| console.from.as_fd());
        polled.extend(console.map(|from| PollFd::from_borrowed_fd(from, PollFlags::IN)));
        match poll(&mut polled, pause.as_ref()) {
            Err(rustix::io::Errno::INTR) => return Ok(()),
            other => other?,
        };
        let ready: Vec<bool> = polled.iter().map(|one| !one.revents().is_empty()).collect();
        drop(polled);
        let (of_signals, rest) = ready.split_at(self.signals.len());
        let (of_children, of_console) = rest.split_at(self.children.len());
        for (number, is_ready) in of_signals.iter().enumerate() {
            if *is_ready {
                self.pass_on(number);
            }
        }
        if of_console.contains(&true) && self.console_says_enough() {
            self.end();
        }
        if self.ends_at.is_some_and(|at| at <= Instant::now()) {
            self.end();
        }
        if of_children.contains(&true) {
            self.reap()?;
        }
        Ok(())
    }

    /// Reaps the children that have ended, and finds those that they have left behind. The watcher of the run, which
    /// has this process's program, is no part of the VMM, and ends by itself.
    fn reap(&mut self) -> io::Result<()> {
        while let Some((pid, status)) = ended_child()? {
            let before = self.children.len();
            self.children.retain(|child| child.pid != pid);
            if self.children.len() < before && self.status == 0 {
                self.status = as_shell(status);
            }
        }
        for pid in orphans() {
            if self.children.iter().any(|child| child.pid == pid) {
                continue;
            }
            self.children.push(Child::of(pid)?);
            if self.is_terminated {
                let _ = kill_process(pid, Signal::TERM);
            }
        }
        Ok(())
    }

    /// Passes a signal on to the children, except to those to which the terminal has sent it, too.
    fn pass_on(&mut self, number: usize) {
        let (signal, socket) = &mut self.signals[number];
        let mut sent = [0; 64];
        let _ = socket.read(&mut sent);
        let is_of_terminal = matches!(*signal, Signal::INT | Signal::QUIT) && is_in_foreground();
        for child in &self.children {
            let is_in_group = getpgid(Some(child.pid)).is_ok_and(|group| group == getpgrp());
            if !(is_of_terminal && is_in_group) {
                // The child may have ended.
                let _ = kill_process(child.pid, *signal);
            }
        }
    }

    fn console_says_enough(&mut self) -> bool {
        match self.console.as_mut().map(Console::pass_on) {
            Some(Said::Text) => true,
            Some(Said::End) => {
                self.console = None;
                false
            }
            Some(Said::Other) | None => false,
        }
    }

    /// Ends the children by TERM, and some time later by KILL.
    fn end(&mut self) {
        let signal = if self.is_terminated {
            Signal::KILL
        } else {
            Signal::TERM
        };
        for child in &self.children {
            let _ = kill_process(child.pid, signal);
        }
        self.is_terminated = true;
        self.ends_at = Instant::now().checked_add(GRACE);
    }

    /// Returns the exit status, after the rest of the output was passed on.
    fn status(mut self) -> u8 {
        if let Some(console) = &mut self.console {
            console.set_nonblocking();
            while console.pass_on() != Said::End {}
        }
        self.status
    }
}

/// Reaps a child that has ended, if there is one. The child may be in a process group of its own.
fn ended_child() -> io::Result<Option<(Pid, WaitStatus)>> {
    match wait(WaitOptions::NOHANG) {
        Err(rustix::io::Errno::CHILD) => Ok(None),
        other => Ok(other?),
    }
}

/// Returns the children of this process, without the watcher.
fn orphans() -> Vec<Pid> {
    let own = fs::read_link("/proc/self/exe").ok();
    let is_watcher =
        |pid: &Pid| fs::read_link(format!("/proc/{}/exe", pid.as_raw_nonzero())).ok() == own;
    let path = format!("/proc/self/task/{}/children", getpid().as_raw_nonzero());
    let children = fs::read_to_string(path).unwrap_or_default();
    let pids = children
        .split_whitespace()
        .filter_map(|pid| Pid::from_raw(pid.parse().ok()?));
    pids.filter(|pid| !is_watcher(pid)).collect()
}

/// Returns the number by which a shell tells how a process ended: its status, or 128 and the signal.
fn as_shell(status: WaitStatus) -> u8 {
    let number = match (status.exit_status(), status.terminating_signal()) {
        (Some(status), _) => status,
        (None, Some(signal)) => 128 + signal,
        (None, None) => 255,
    };
    u8::try_from(number).unwrap_or(255)
}

/// Returns true if the terminal sends its signals to this process and the child.
fn is_in_foreground() -> bool {
    let terminal = File::open("/dev/tty").ok();
    let group = terminal.and_then(|terminal| tcgetpgrp(terminal).ok());
    group.is_some_and(|group| group == getpgrp())
}

/// The VMM's standard output, passed on and searched for a text.
struct Console {
    from: File,
    to: Option<File>,
    wanted: Vec<u8>,
    /// The last bytes, which may be the beginning of the text.
    last: Vec<u8>,
}

/// The result of one read from the console.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Said {
    Text,
    Other,
    End,
}

impl Console {
    fn new(from: OwnedFd, wanted: &[u8]) -> Self {
        Self {
            from: from.into(),
            to: descriptors::duplicate(descriptors::STDOUT).ok(),
            wanted: wanted.to_vec(),
            last: Vec::new(),
        }
    }

    /// Makes reads return at once if nothing is there: a process in the background may keep the pipe open.
    fn set_nonblocking(&self) {
        let _ = rustix::io::ioctl_fionbio(&self.from, true);
    }

    /// Passes on the bytes that are there.
    fn pass_on(&mut self) -> Said {
        let mut bytes = [0; 4096];
        let count = match self.from.read(&mut bytes) {
            Ok(0) | Err(_) => return Said::End,
            Ok(count) => count,
        };
        if let Some(to) = &mut self.to
            && to.write_all(&bytes[..count]).is_err()
        {
            // Nobody reads any more; the text is still looked for.
            self.to = None;
        }
        self.last.extend_from_slice(&bytes[..count]);
        let is_there = memmem::find(&self.last, &self.wanted).is_some();
        let keep = self.wanted.len().saturating_sub(1).min(self.last.len());
        self.last.drain(..self.last.len() - keep);
        if is_there { Said::Text } else { Said::Other }
    }
}
