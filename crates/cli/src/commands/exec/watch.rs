//! The watcher: a small process beside the VMM. The watcher refuses and reports KVM requests that bypass the
//! library, writes events, and prints the summary at the end. No VM depends on the watcher: if it dies, no
//! new VM can be made without the library, and running VMs stay guarded.
//!
//! # Terminology
//!
//! - *first process*: the process that the caller of `msrgate exec` has started, which became the VMM. Its end is
//!   what the caller waits for.
//! - *end of the run*: the time when no process of the run is left. A VMM that has put itself into the background,
//!   or that a script has, ends after the first process.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::iter;
use std::os::fd::{AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt as _;
use std::thread;
use std::time::Duration;

use msrgate_policy::{Compiled, one_line};
use msrgate_state::{Cursor, Snapshot, Unfinished};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FileType, fstat};
use rustix::process::{PidfdFlags, getpid, pidfd_open};

use super::AtOpenDoor;
use super::door::{self, Knock, Wish};
use super::events::{Events, Untold};
use super::handover::{self, Received, Watcher};
use super::page::StateFile;
use super::speaker::Speaker;
use super::summary::{self, Time};
use super::{GUIDE, Launch, process};
use crate::failure::Failure;

/// The data that the watcher needs for its work.
pub(super) struct Watch {
    compiled: Compiled,
    at_open_door: AtOpenDoor,
    policy: String,
    events: Option<Events>,
    report: Report,
    /// The summary that was last written, or that could not be written, to the file of `--summary`.
    written: String,
    pidfd: OwnedFd,
}

/// The kind of report that the watcher makes at the end of the run.
pub(in crate::commands) enum Report {
    None,
    /// The watcher prints the summary to standard error.
    StandardError,
    /// The watcher appends the summary to this file.
    File(File),
    /// The watcher writes the bytes of the state page into this pipe, from which another process reads them.
    Page(File),
}

/// The longest time for which an event waits until the watcher writes it.
const PAUSE: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 100_000_000,
};

/// The longest time until the watcher notices the end of a run whose seccomp filter has no listener.
const LONG_PAUSE: Timespec = Timespec {
    tv_sec: 1,
    tv_nsec: 0,
};

/// The time for which a process that calls execve(2) has no state page mapped.
const EXEC: Duration = Duration::from_millis(50);

impl Watch {
    /// Makes the watcher's data, and opens a pidfd by which the watcher learns of this process's end.
    ///
    /// # Errors
    /// The kernel does not support `pidfd_open(2)`.
    pub(super) fn new(launch: Launch<'_>) -> Result<Self, Failure> {
        let pidfd = pidfd_open(getpid(), PidfdFlags::empty())
            .map_err(|error| Failure::Host(format!("the kernel watches no process: {error}")))?;
        Ok(Self {
            compiled: launch.compiled.clone(),
            policy: launch.policy,
            events: launch.events,
            report: launch.report,
            at_open_door: launch.at_open_door,
            written: String::new(),
            pidfd,
        })
    }

    /// Starts the watcher in a process of its own.
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
            let speaker = Speaker::start();
            self.watch(&its, page, &speaker);
            page.remove();
            speaker.finish();
        })
        .map_err(failed)?;
        Ok(watcher)
    }

    fn watch(mut self, socket: &OwnedFd, page: &StateFile, speaker: &Speaker) {
        // No message comes if the process that was to become the VMM has given up.
        let Some(Received { listener }) = handover::receive(socket) else {
            return;
        };
        if !handover::is_begun(socket) {
            return;
        }
        let mut run = Watched {
            listener: listener.map_or(Listener::Absent, Listener::Open),
            speaker,
            first: First::Runs,
            said: Vec::new(),
            next_event: Cursor::default(),
            held_back: 0,
            guarded: 0,
        };
        page.remove_litter();
        while run.goes_on(page) {
            self.turn(&mut run, page);
        }
        self.end_of_run(&mut run, page);
    }

    /// Waits for a refused request, for the end of the first process, or until it is time to write events,
    /// and handles what came.
    fn turn(&mut self, run: &mut Watched<'_>, page: &StateFile) {
        let (mut knocks, mut ends) = (PollFlags::empty(), PollFlags::empty());
        {
            let mut polled = Vec::new();
            let listener = run.listener.open();
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
            if run.listener.open().is_some() {
                knocks = seen.next().unwrap_or(PollFlags::empty());
            }
            ends = seen.next().unwrap_or(ends);
        }
        if let Some(listener) = run.listener.open() {
            if knocks.contains(PollFlags::IN) {
                if let Some(knock) = door::take(listener) {
                    // Once it is refused, the process may go on to its end.
                    let comm = comm(knock);
                    door::refuse(listener, knock);
                    run.say_once(knock, comm);
                }
            } else if knocks.contains(PollFlags::HUP) {
                run.listener = Listener::Deserted;
            } else if !knocks.is_empty() {
                run.listener = Listener::Absent;
            }
        }
        self.write_events(run, page, Unfinished::Wait);
        if !ends.is_empty() {
            self.end_of_first(run, page);
        }
    }

    /// Prints the summary after the first process has ended, and closes standard error, so that the reader
    /// of standard error sees the end of the input. If standard error is a file and the run goes on, the
    /// summary is printed at the end of the run.
    fn end_of_first(&mut self, run: &mut Watched<'_>, page: &StateFile) {
        let is_last = !page.has_others();
        run.first = First::Ended;
        if is_last {
            self.write_events(run, page, Unfinished::Skip);
        }
        if matches!(self.report, Report::File(_)) && is_over(page) {
            // If this fails, standard error is still there to say it.
            self.write_summary(page, run.speaker);
        }
        if matches!(self.report, Report::StandardError) {
            // A process that begins another program is without the page: `is_last` may be wrong.
            if is_file(process::standard_error()) {
                return;
            }
            let time = if is_last { Time::End } else { Time::SoFar };
            run.speaker.talk(self.text(page, time));
            self.report = Report::None;
        } else if let (Report::None | Report::File(_), Err(why)) = (&self.report, snapshot(page)) {
            // The reader of the page's bytes says it itself.
            run.speaker.talk(summary::without_page(&self.policy, &why));
        }
        if let Some(loss) = self.events.as_ref().and_then(Events::loss) {
            run.speaker.say(&loss);
        }
        run.speaker.close();
    }

    fn end_of_run(&mut self, run: &mut Watched<'_>, page: &StateFile) {
        self.write_events(run, page, Unfinished::Skip);
        if let (Some(events), Ok(snapshot)) = (&mut self.events, snapshot(page)) {
            let untold = Untold {
                dropped: snapshot.without_event(),
                ..Untold::default()
            };
            events.append(iter::empty(), untold);
        }
        match &mut self.report {
            Report::None => {}
            Report::StandardError => run.speaker.talk(self.text_of_end(page)),
            Report::File(_) => self.write_summary(page, run.speaker),
            Report::Page(pipe) => {
                // A reader that gets no byte takes this process for killed.
                let bytes = page.bytes().ok().filter(|bytes| !bytes.is_empty());
                let bytes = bytes.unwrap_or_else(|| b"damaged".to_vec());
                let _ = pipe.write_all(&bytes);
            }
        }
    }

    /// Appends the summary to the file of `--summary`, unless the same text was appended before. An earlier
    /// summary may not have been the last, if the run then went on.
    fn write_summary(&mut self, page: &StateFile, speaker: &Speaker) {
        let mut text = self.text_of_end(page);
        if text.is_empty() {
            text = summary::without_vm(&self.policy, self.at_open_door);
        }
        let Report::File(file) = &mut self.report else {
            return;
        };
        if text == self.written {
            return;
        }
        let before = file.metadata().ok().filter(fs::Metadata::is_file);
        if let Err(error) = file.write_all(text.as_bytes()) {
            let _ = before.map(|before| file.set_len(before.len()));
            speaker.say(&format!("the summary cannot be written: {error}"));
        }
        self.written = text;
    }

    fn text_of_end(&self, page: &StateFile) -> String {
        let mut text = self.text(page, Time::End);
        if let Some(loss) = self.events.as_ref().and_then(Events::loss) {
            text += &format!("  {loss}\n");
        }
        text
    }

    fn text(&self, page: &StateFile, time: Time) -> String {
        match snapshot(page) {
            Ok(snapshot) => summary::text(
                &snapshot,
                &self.compiled,
                &self.policy,
                time,
                self.at_open_door,
            ),
            Err(why) => summary::without_page(&self.policy, &why),
        }
    }

    fn write_events(&mut self, run: &mut Watched<'_>, page: &StateFile, unfinished: Unfinished) {
        let Some(events) = &mut self.events else {
            return;
        };
        // The summary says so.
        let Ok(snapshot) = snapshot(page) else {
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
        let guarded = snapshot.vms_guarded();
        let untold = Untold {
            guarded: guarded.saturating_sub(run.guarded),
            dropped: followed.lost,
            held_back: held_back.saturating_sub(run.held_back),
        };
        run.held_back = held_back.max(run.held_back);
        run.guarded = guarded.max(run.guarded);
        let lines = followed.events.iter();
        events.append(
            lines.map(|event| summary::json(event, self.compiled.program())),
            untold,
        );
    }
}

/// The watcher's knowledge of the run so far.
struct Watched<'s> {
    listener: Listener,
    speaker: &'s Speaker,
    first: First,
    /// The refused requests that were already reported: the program's name, and the kind of request.
    said: Vec<(String, Wish)>,
    next_event: Cursor,
    /// The numbers of events that were held back, and of guarded VMs, that the file of events was told.
    held_back: u64,
    guarded: u64,
}

/// The listener of the run's seccomp filter.
#[derive(Debug)]
enum Listener {
    /// A process with the filter is left.
    Open(OwnedFd),
    /// No process with the filter is left, so the run is over: children inherit the filter, and keep it across
    /// execve(2).
    Deserted,
    /// The filter has no listener, or its listener tells nothing any more.
    Absent,
}

impl Listener {
    const fn open(&self) -> Option<&OwnedFd> {
        match self {
            Self::Open(listener) => Some(listener),
            Self::Deserted | Self::Absent => None,
        }
    }
}

/// The state of the run's first process, the VMM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum First {
    Runs,
    Ended,
}

impl Watched<'_> {
    /// Returns true if a process of the run is left: a process under the seccomp filter, or, if the filter
    /// has no listener, a process that has the state page mapped.
    fn goes_on(&self, page: &StateFile) -> bool {
        self.first == First::Runs
            || match self.listener {
                Listener::Open(_) => true,
                Listener::Deserted => false,
                Listener::Absent => !is_over(page),
            }
    }

    /// Reports a refused request once for each program and kind of request, because a program may repeat the
    /// request endlessly.
    fn say_once(&mut self, knock: Knock, comm: String) {
        const MOST: usize = 64;
        let one = (comm, knock.wish);
        if self.said.contains(&one) || self.said.len() >= MOST {
            return;
        }
        let what = match knock.wish {
            Wish::Vm => "asked KVM for a VM",
            Wish::Filter => "asked KVM to replace a VM's MSR filter",
            Wish::Run => "asked KVM to run a vCPU",
        };
        self.speaker.say(&format!(
            "process {} ({}) {what} past msrgate's library, and was refused: it has the C library inside, was started without LD_PRELOAD, or calls the kernel by itself; see {GUIDE}",
            knock.thread,
            one_line(&one.0),
        ));
        self.said.push(one);
    }
}

/// Returns true if no process has the state page mapped, neither now nor 50 ms later.
fn is_over(page: &StateFile) -> bool {
    !page.has_others() && {
        thread::sleep(EXEC);
        !page.has_others()
    }
}

/// Returns the name of the program that made the refused request.
fn comm(knock: Knock) -> String {
    let comm = fs::read_to_string(format!("/proc/{}/comm", knock.thread)).unwrap_or_default();
    comm.trim().to_owned()
}

fn is_file(fd: BorrowedFd<'_>) -> bool {
    fstat(fd).is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode).is_file())
}

/// Reads the state page. If that fails, the function returns the reason.
fn snapshot(page: &StateFile) -> Result<Snapshot, String> {
    let bytes = page.bytes().map_err(|error| error.to_string())?;
    Snapshot::new(&bytes).map_err(|bad| bad.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file description that is still open, such as that of a process whose memory the kernel is freeing, does not
    /// delay the end of a run whose filter no process has.
    #[test]
    fn run_is_over_once_no_process_has_its_filter_although_page_is_open() {
        let folder = tempfile::tempdir().unwrap();
        let page = StateFile::in_folder(folder.path(), &[0; 16]).unwrap();
        let held = File::options().read(true).write(true).open(page.path());
        let held = held.unwrap();
        assert!(page.has_others());
        let speaker = Speaker::start();
        let mut run = Watched {
            listener: Listener::Absent,
            speaker: &speaker,
            first: First::Ended,
            said: Vec::new(),
            next_event: Cursor::default(),
            held_back: 0,
            guarded: 0,
        };
        assert!(run.goes_on(&page));
        run.listener = Listener::Deserted;
        assert!(!run.goes_on(&page));
        run.listener = Listener::Absent;
        drop(held);
        assert!(!run.goes_on(&page));
        page.remove();
        speaker.finish();
    }
}
