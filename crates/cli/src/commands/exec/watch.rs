//! The watcher: a small process beside the VMM. It refuses and reports requests at the door, writes events,
//! and prints the summary at the end. No VM depends on the watcher: if it dies, no new VM can be made
//! without the library, and running VMs stay guarded.
//!
//! # Terminology
//!
//! - *first process*: the process that the caller of `msrgate exec` has started, which became the VMM. Its end is
//!   what the caller waits for.
//! - *end of the run*: the time when no process of the run is left. A VMM that has put itself into the background,
//!   or that a script has, ends after the first process.

use std::fs::File;
use std::io::{self, Write as _};
use std::iter;
use std::os::fd::{AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt as _;
use std::thread;
use std::time::Duration;

use msrgate_policy::{Program, one_line};
use msrgate_state::{Cursor, Snapshot, Unfinished};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FileType, fstat};
use rustix::process::{PidfdFlags, getpid, pidfd_open};

use super::door::{self, Knock, Wish};
use super::events::{Events, Untold};
use super::handover::{self, Received, Watcher};
use super::page::StateFile;
use super::summary::{self, Time};
use super::{GUIDE, Launch, process};
use crate::failure::Failure;

/// The watcher's task.
pub(super) struct Watch {
    program: Program,
    policy: String,
    events: Option<Events>,
    report: Report,
    pidfd: OwnedFd,
}

/// The report at the end of the run.
pub(in crate::commands) enum Report {
    None,
    /// The summary, on standard error.
    StandardError,
    /// The summary, in a file.
    File(File),
    /// The bytes of the state page, for a process that reads them from a pipe.
    Page(File),
}

/// The longest time until the watcher writes new events.
const PAUSE: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 100_000_000,
};

/// The longest time until the watcher sees the end of a run whose door has no listener.
const LONG_PAUSE: Timespec = Timespec {
    tv_sec: 1,
    tv_nsec: 0,
};

/// The time in which a process that begins another program is without the page.
const EXEC: Duration = Duration::from_millis(50);

impl Watch {
    /// Opens the files for events and the summary, and a descriptor of this process.
    ///
    /// # Errors
    /// A file cannot be written, or the kernel lacks something.
    pub(super) fn new(launch: Launch<'_>) -> Result<Self, Failure> {
        let events = launch.events.map(Events::open).transpose()?;
        let pidfd = pidfd_open(getpid(), PidfdFlags::empty())
            .map_err(|error| Failure::Host(format!("the kernel watches no process: {error}")))?;
        Ok(Self {
            program: launch.program.clone(),
            policy: launch.policy,
            events,
            report: launch.report,
            pidfd,
        })
    }

    /// Starts the watcher's process.
    ///
    /// # Errors
    /// The kernel makes no process.
    pub(super) fn begin(self, page: &StateFile) -> Result<Watcher, Failure> {
        let failed = |error: io::Error| {
            Failure::Host(format!("there is no process to watch the VMM: {error}"))
        };
        let (watcher, its) = handover::pair().map_err(failed)?;
        process::apart(|| {
            let mut kept = vec![
                its.as_raw_fd(),
                self.pidfd.as_raw_fd(),
                page.file().as_raw_fd(),
            ];
            kept.extend(self.events.as_ref().map(|events| events.file().as_raw_fd()));
            if let Report::File(file) | Report::Page(file) = &self.report {
                kept.push(file.as_raw_fd());
            }
            debug_assert!(!kept.contains(&watcher.socket.as_raw_fd()));
            process::keep_only(&kept);
            self.watch(&its, page);
            page.remove();
        })
        .map_err(failed)?;
        Ok(watcher)
    }

    fn watch(mut self, socket: &OwnedFd, page: &StateFile) {
        // No message comes if the process that was to become the VMM has given up.
        let Some(Received { listener }) = handover::receive(socket) else {
            return;
        };
        let mut run = Watched {
            listener,
            first: First::Runs,
            said: Vec::new(),
            next_event: Cursor::default(),
            held_back: 0,
        };
        page.remove_litter();
        while run.goes_on(page) {
            self.turn(&mut run, page);
        }
        self.end_of_run(&mut run, page);
    }

    /// Waits for a request at the door, the end of the first process or the time for events, and handles it.
    fn turn(&mut self, run: &mut Watched, page: &StateFile) {
        let (mut knocks, mut ends) = (PollFlags::empty(), PollFlags::empty());
        {
            let mut polled = Vec::new();
            let listener = run.listener.as_ref();
            polled.extend(listener.map(|one| PollFd::new(one, PollFlags::IN)));
            if run.first == First::Runs {
                polled.push(PollFd::new(&self.pidfd, PollFlags::IN));
            }
            let pause = match (&self.events, polled.is_empty()) {
                (Some(_), _) => Some(&PAUSE),
                // Nothing tells the end of the run.
                (None, true) => Some(&LONG_PAUSE),
                (None, false) => None,
            };
            if poll(&mut polled, pause).is_err() {
                return;
            }
            let mut seen = polled.iter().map(PollFd::revents);
            if run.listener.is_some() {
                knocks = seen.next().unwrap_or(PollFlags::empty());
            }
            ends = seen.next().unwrap_or(ends);
        }
        if let Some(listener) = &run.listener {
            if knocks.contains(PollFlags::IN) {
                if let Some(knock) = door::take(listener) {
                    say_once(&mut run.said, knock);
                    door::refuse(listener, knock);
                }
            } else if !knocks.is_empty() {
                // No process with the filter is left.
                run.listener = None;
            }
        }
        self.write_events(run, page, Unfinished::Wait);
        if !ends.is_empty() {
            self.end_of_first(run, page);
        }
    }

    /// Prints the summary after the first process has ended, and closes standard error, so that a reader of it sees
    /// the end. A file has no such reader: if the run goes on, it gets the summary at the end of the run.
    fn end_of_first(&mut self, run: &mut Watched, page: &StateFile) {
        let is_last = !page.has_others();
        run.first = First::Ended;
        if is_last {
            self.write_events(run, page, Unfinished::Skip);
        }
        let is_file = is_file(process::standard_error());
        if matches!(self.report, Report::StandardError) {
            if !is_last && is_file {
                return;
            }
            let time = if is_last { Time::End } else { Time::SoFar };
            crate::results::talk(&self.text(page, time));
            self.report = Report::None;
        }
        if let Some(loss) = self.events.as_ref().and_then(Events::loss) {
            super::say(&loss);
        }
        process::replace_by_nothing(process::standard_error().as_raw_fd());
    }

    fn end_of_run(&mut self, run: &mut Watched, page: &StateFile) {
        self.write_events(run, page, Unfinished::Skip);
        if let (Some(events), Some(snapshot)) = (&mut self.events, snapshot(page)) {
            let untold = Untold {
                dropped: snapshot.without_event(),
                held_back: 0,
            };
            events.append(iter::empty(), untold);
        }
        let mut text = self.text(page, Time::End);
        if let Some(loss) = self.events.as_ref().and_then(Events::loss) {
            text += &format!("  {loss}\n");
        }
        match &mut self.report {
            Report::None => {}
            Report::StandardError => crate::results::talk(&text),
            Report::File(file) => {
                if text.is_empty() {
                    text = summary::without_vm(&self.policy);
                }
                if let Err(error) = file.write_all(text.as_bytes()) {
                    super::say(&format!("the summary cannot be written: {error}"));
                }
            }
            Report::Page(pipe) => {
                // The reader sees from the missing bytes that this failed.
                let bytes = page.bytes().unwrap_or_default();
                let _ = pipe.write_all(&bytes);
            }
        }
    }

    fn text(&self, page: &StateFile, time: Time) -> String {
        let snapshot = snapshot(page);
        let text = |snapshot| summary::text(&snapshot, &self.program, &self.policy, time);
        snapshot.map_or_else(String::new, text)
    }

    fn write_events(&mut self, run: &mut Watched, page: &StateFile, unfinished: Unfinished) {
        let Some(events) = &mut self.events else {
            return;
        };
        let Some(snapshot) = snapshot(page) else {
            return;
        };
        let followed = snapshot.events_since(&run.next_event, unfinished);
        if run.next_event != followed.next {
            // A library that does not see this has less room in its rings, and counts the events that find none.
            let _ = page
                .file()
                .write_all_at(&followed.next.taken(), Cursor::POSITION);
        }
        run.next_event = followed.next;
        let held_back = snapshot.held_back();
        let untold = Untold {
            dropped: followed.lost,
            held_back: held_back.saturating_sub(run.held_back),
        };
        run.held_back = held_back.max(run.held_back);
        let lines = followed.events.iter();
        events.append(
            lines.map(|event| summary::json(event, &self.program)),
            untold,
        );
    }
}

/// The run, as the watcher has seen it until now.
struct Watched {
    listener: Option<OwnedFd>,
    first: First,
    /// The refusals that were reported, by the program's name.
    said: Vec<(String, Wish)>,
    next_event: Cursor,
    held_back: u64,
}

/// The state of the first process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum First {
    Runs,
    Ended,
}

impl Watched {
    /// Returns true if a process of the run is left: one under the door, or, if nobody listens at the door, one that
    /// has the state page.
    fn goes_on(&self, page: &StateFile) -> bool {
        self.first == First::Runs || self.listener.is_some() || page.has_others() || {
            thread::sleep(EXEC);
            page.has_others()
        }
    }
}

fn is_file(fd: BorrowedFd<'_>) -> bool {
    fstat(fd).is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode).is_file())
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
