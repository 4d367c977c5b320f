//! The watcher: a small process beside the VMM. It refuses and reports requests at the door, writes events,
//! and prints the summary at the end. No VM depends on the watcher: if it dies, no new VM can be made
//! without the library, and running VMs stay guarded.

use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut, Write as _};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, AsRawFd, OwnedFd};
use std::path::Path;

use msrgate_policy::{Program, one_line};
use msrgate_state::Snapshot;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};
use rustix::process::{Pid, PidfdFlags, getpid, pidfd_open, test_kill_process};

use super::door::{self, Door, Knock, Wish};
use super::page::StateFile;
use super::{GUIDE, process, summary};
use crate::cli::ExecArgs;
use crate::failure::Failure;
use crate::named;
use crate::named::name;

/// The watcher's task.
pub(super) struct Watch {
    program: Program,
    policy: String,
    events: Option<File>,
    has_summary: bool,
    vmm: Pid,
    pidfd: OwnedFd,
}

/// The connection to the watcher in the process that becomes the VMM.
#[derive(Debug)]
pub(super) struct Watcher {
    socket: OwnedFd,
}

/// The longest time until the watcher writes new events.
const PAUSE: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 100_000_000,
};

/// The message that carries the door's listener, and the one without it.
const WITH_LISTENER: &[u8] = b"L";
const WITHOUT: &[u8] = b"-";

impl Watch {
    /// Opens the file for events and a descriptor of this process.
    ///
    /// # Errors
    /// The file for events cannot be written, or the kernel lacks something.
    pub(super) fn new(
        args: &ExecArgs,
        program: Program,
        page: &StateFile,
    ) -> Result<Self, Failure> {
        let open = |path: &Path| {
            let file = File::options().create(true).append(true).open(path);
            file.map_err(|error| Failure::Input {
                what: name(path),
                why: format!("cannot be written: {error}"),
            })
        };
        let events = args
            .events
            .as_deref()
            .map(open)
            .transpose()
            .inspect_err(|_| page.remove())?;
        let pidfd = pidfd_open(getpid(), PidfdFlags::empty()).map_err(|error| {
            page.remove();
            Failure::Host(format!("the kernel watches no process: {error}"))
        })?;
        Ok(Self {
            program,
            policy: named::shown(&args.policy),
            events,
            has_summary: !args.quiet,
            vmm: getpid(),
            pidfd,
        })
    }

    /// Starts the watcher's process.
    ///
    /// # Errors
    /// The kernel makes no process.
    pub(super) fn begin(self, page: StateFile) -> Result<Watcher, Failure> {
        let failed = |error: io::Error| {
            Failure::Host(format!("there is no process to watch the VMM: {error}"))
        };
        let pair = socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        );
        let (socket, its) = pair.map_err(|error| failed(error.into()))?;
        let number = socket.as_raw_fd();
        process::apart(move || {
            let mut kept = vec![
                its.as_raw_fd(),
                self.pidfd.as_raw_fd(),
                page.file().as_raw_fd(),
            ];
            kept.extend(self.events.as_ref().map(AsRawFd::as_raw_fd));
            debug_assert!(!kept.contains(&number));
            process::keep_only(&kept);
            self.watch(&its, &page);
            page.remove();
        })
        .map_err(failed)?;
        Ok(Watcher { socket })
    }

    fn watch(mut self, socket: &OwnedFd, page: &StateFile) {
        // No message comes if the process that was to become the VMM has given up.
        let Some(Received { listener }) = receive(socket) else {
            return;
        };
        let mut state = Watched {
            listener,
            is_running: true,
            said: Vec::new(),
            next_event: 0,
            held_back: 0,
        };
        while state.is_running || state.listener.is_some() {
            self.turn(&mut state, page);
        }
        self.write_events(&mut state, page);
    }

    /// Waits for a request at the door, the VMM's end or the time for events, and handles it.
    fn turn(&mut self, state: &mut Watched, page: &StateFile) {
        let (mut listens, mut runs) = (PollFlags::empty(), PollFlags::empty());
        {
            let mut polled = Vec::new();
            polled.extend(
                state
                    .listener
                    .as_ref()
                    .map(|one| PollFd::new(one, PollFlags::IN)),
            );
            if state.is_running {
                polled.push(PollFd::new(&self.pidfd, PollFlags::IN));
            }
            let pause = self.events.is_some().then_some(&PAUSE);
            if poll(&mut polled, pause).is_err() {
                return;
            }
            let mut seen = polled.iter().map(PollFd::revents);
            if state.listener.is_some() {
                listens = seen.next().unwrap_or(PollFlags::empty());
            }
            runs = seen.next().unwrap_or(runs);
        }
        if let Some(listener) = &state.listener {
            if listens.contains(PollFlags::IN) {
                if let Some(knock) = door::take(listener) {
                    say_once(&mut state.said, knock);
                    door::refuse(listener, knock);
                }
            } else if !listens.is_empty() {
                // No process with the filter is left.
                state.listener = None;
            }
        }
        self.write_events(state, page);
        if !runs.is_empty() {
            state.is_running = false;
            self.end_of_vmm(page);
        }
    }

    /// Prints the summary after the VMM's process has ended, and closes standard error, so that a reader of
    /// it sees the end.
    fn end_of_vmm(&self, page: &StateFile) {
        if self.has_summary
            && let Some(snapshot) = snapshot(page)
        {
            // If another process with a VM runs on, the VMM is a daemon, and its end is not now.
            let own = u32::try_from(self.vmm.as_raw_pid()).unwrap_or(0);
            let runs_on = |pid: u32| {
                let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
                pid.is_some_and(|pid| test_kill_process(pid).is_ok())
            };
            let vms = snapshot.vms();
            if !vms.iter().any(|vm| vm.pid != own && runs_on(vm.pid)) {
                let text = summary::text(&snapshot, &self.program, &self.policy);
                crate::results::talk(&text);
            }
        }
        process::replace_by_nothing(process::standard_error().as_raw_fd());
    }

    fn write_events(&mut self, state: &mut Watched, page: &StateFile) {
        let Some(file) = &mut self.events else { return };
        let Some(snapshot) = snapshot(page) else {
            return;
        };
        let followed = snapshot.events_since(state.next_event);
        state.next_event = followed.next;
        let mut lines = String::new();
        for event in &followed.events {
            lines += &summary::json(event, &self.program);
        }
        if followed.lost > 0 {
            lines += &format!("{{\"schema\":1,\"dropped\":{}}}\n", followed.lost);
        }
        let held_back = snapshot.held_back();
        if held_back > state.held_back {
            let more = held_back - state.held_back;
            lines += &format!("{{\"schema\":1,\"held_back\":{more}}}\n");
            state.held_back = held_back;
        }
        // This is said once. The summary's counts include the events that were not written.
        if let Err(error) = file.write_all(lines.as_bytes()) {
            super::say(&format!("the events cannot be written any more: {error}"));
            self.events = None;
        }
    }
}

struct Watched {
    listener: Option<OwnedFd>,
    is_running: bool,
    /// The refusals that were reported, by the program's name.
    said: Vec<(String, Wish)>,
    next_event: u64,
    held_back: u64,
}

impl Watcher {
    /// Tells the watcher that this process does not become the VMM.
    pub(super) fn give_up(&self) {
        let _ = rustix::net::shutdown(&self.socket, rustix::net::Shutdown::Both);
    }

    /// Gives the watcher the door's listener.
    ///
    /// # Errors
    /// The watcher has died.
    pub(super) fn hand_over(self, door: &Door) -> Result<(), Failure> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut message = SendAncillaryBuffer::new(&mut space);
        let listener = match door {
            Door::Heard(listener) => Some([listener.as_fd()]),
            Door::Silent | Door::Open => None,
        };
        let bytes = match &listener {
            Some(listener) => {
                message.push(SendAncillaryMessage::ScmRights(listener));
                WITH_LISTENER
            }
            None => WITHOUT,
        };
        let sent = sendmsg(
            &self.socket,
            &[IoSlice::new(bytes)],
            &mut message,
            SendFlags::NOSIGNAL,
        );
        match sent {
            Ok(_) => Ok(()),
            Err(error) => Err(Failure::Host(format!(
                "the process that watches the VMM has died: {error}"
            ))),
        }
    }
}

/// The message that the VMM is about to start.
struct Received {
    /// The door's listener, if it has one.
    listener: Option<OwnedFd>,
}

/// Receives the message. Returns `None` if the other process has ended or given up without one.
fn receive(socket: &OwnedFd) -> Option<Received> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut message = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    let received = recvmsg(
        socket,
        &mut [IoSliceMut::new(&mut byte)],
        &mut message,
        RecvFlags::CMSG_CLOEXEC,
    );
    if received.ok()?.bytes == 0 {
        return None;
    }
    let descriptors = message.drain().find_map(|one| match one {
        RecvAncillaryMessage::ScmRights(mut all) => all.next(),
        _ => None,
    });
    Some(Received {
        listener: descriptors,
    })
}

fn snapshot(page: &StateFile) -> Option<Snapshot> {
    Snapshot::new(&page.bytes().ok()?).ok()
}

/// Reports a refused request once for each program and kind, as a program may try again without end.
fn say_once(said: &mut Vec<(String, Wish)>, knock: Knock) {
    const MOST: usize = 64;
    let comm = std::fs::read_to_string(format!("/proc/{}/comm", knock.thread)).unwrap_or_default();
    let one = (comm.trim().to_owned(), knock.wish);
    if said.contains(&one) || said.len() >= MOST {
        return;
    }
    let what = match knock.wish {
        Wish::Vm => "asked KVM for a VM",
        Wish::Filter => "asked KVM to replace a VM's MSR filter",
    };
    super::say(&format!(
        "process {} ({}) {what} past msrgate's library, and was refused: it has the C library inside, was started without LD_PRELOAD, or calls the kernel by itself; see {GUIDE}",
        knock.thread,
        one_line(&one.0),
    ));
    said.push(one);
}
