//! The parent of the VMM: it passes signals on, ends the VMM where `--until` says, and waits for its end.

use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use memchr::memmem;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitOptions, WaitStatus, kill_process, pidfd_open, waitpid,
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

/// Runs the VMM in a child, waits until the child has ended, and returns its exit status as a shell counts it.
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
        child: pid,
        pidfd: pidfd_open(pid, PidfdFlags::empty()).map_err(|error| failed(error.into()))?,
        signals,
        console,
        ends_at: match until {
            Some(Until::Time(time)) => Instant::now().checked_add(*time),
            _ => None,
        },
        is_terminated: false,
    };
    while !parent.turn().map_err(failed)? {}
    parent.status().map_err(failed)
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

struct Parent {
    child: Pid,
    pidfd: OwnedFd,
    signals: Vec<(Signal, UnixStream)>,
    console: Option<Console>,
    /// The time at which the child gets TERM, or KILL if it has got TERM.
    ends_at: Option<Instant>,
    is_terminated: bool,
}

impl Parent {
    /// Waits for something to happen, and handles it. Returns true once the child has ended.
    fn turn(&mut self) -> io::Result<bool> {
        let left = self
            .ends_at
            .map(|at| at.saturating_duration_since(Instant::now()));
        let pause = left.map(|left| Timespec {
            tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(left.subsec_nanos()),
        });
        let mut polled = vec![PollFd::new(&self.pidfd, PollFlags::IN)];
        polled.extend(
            self.signals
                .iter()
                .map(|(_, one)| PollFd::new(one, PollFlags::IN)),
        );
        let console = self.console.as_ref().map(|console| console.from.as_fd());
        polled.extend(console.map(|from| PollFd::from_borrowed_fd(from, PollFlags::IN)));
        match poll(&mut polled, pause.as_ref()) {
            Err(rustix::io::Errno::INTR) => return Ok(false),
            other => other?,
        };
        let ready: Vec<bool> = polled.iter().map(|one| !one.revents().is_empty()).collect();
        drop(polled);
        for (number, is_ready) in ready[1..=self.signals.len()].iter().enumerate() {
            if *is_ready {
                self.pass_on(number);
            }
        }
        if ready.get(1 + self.signals.len()) == Some(&true) && self.console_says_enough() {
            self.end();
        }
        if self.ends_at.is_some_and(|at| at <= Instant::now()) {
            self.end();
        }
        Ok(ready[0])
    }

    /// Passes a signal on to the child, unless the terminal has sent it to the child, too.
    fn pass_on(&mut self, number: usize) {
        let (signal, socket) = &mut self.signals[number];
        let mut sent = [0; 64];
        let _ = socket.read(&mut sent);
        let is_of_terminal = matches!(*signal, Signal::INT | Signal::QUIT) && is_in_foreground();
        if !is_of_terminal {
            // The child may have ended.
            let _ = kill_process(self.child, *signal);
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

    /// Ends the child by TERM, and some time later by KILL.
    fn end(&mut self) {
        let signal = if self.is_terminated {
            Signal::KILL
        } else {
            Signal::TERM
        };
        let _ = kill_process(self.child, signal);
        self.is_terminated = true;
        self.ends_at = Instant::now().checked_add(GRACE);
    }

    /// Returns the exit status of the child, which has ended, after the rest of its output was passed on.
    fn status(mut self) -> io::Result<u8> {
        if let Some(console) = &mut self.console {
            console.set_nonblocking();
            while console.pass_on() != Said::End {}
        }
        let ended = waitpid(Some(self.child), WaitOptions::empty())?;
        Ok(ended.map_or(EXIT_NOT_BEHIND, |(_, status)| as_shell(status)))
    }
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
    group.is_some_and(|group| group == rustix::process::getpgrp())
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
