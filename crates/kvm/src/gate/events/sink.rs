//! Where events go: a file of JSON lines, `tracing`, or whatever a VMM has.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use msrgate_program::{Origin, shown_json};
use serde_json::{Map, Value, json};

use super::event::Event;
use super::reader::{Events, VcpuDrops};
use crate::sys::{calls, signals};

/// Takes events. It runs on a thread of its own, never on a vCPU's.
pub trait Sink: Send {
    /// One event.
    fn event(&mut self, event: &Event);

    /// Events of a vCPU were dropped or held back: how many so far. It is said when that has changed,
    /// once a second at most and at the end.
    fn dropped(&mut self, drops: VcpuDrops);

    /// Some events have been taken, and no more are there for now.
    fn flush(&mut self) {}
}

/// Events as JSON, a line each, in a file that is put aside when it is full.
///
/// Each line goes to the file by one write of the whole line, so that after a kill at most the last is
/// cut. Whoever writes next ends it. Several may write to one file, in one process or more: they take
/// turns by `flock`, and put it aside once. Who keeps the lock is not waited for beyond a tenth of a
/// second, and where the file system has no such locks there is nobody to wait for: a line that a kill
/// cuts may then have another's at its end.
///
/// For each line it calls `flock`, `statx`, `write` and perhaps `pread64`, to put a file aside `rename`
/// and `openat`: a VMM's seccomp rules have to let it.
///
/// `{"schema":1,"time":1700000000.123456789,"vcpu":0,"msr":"0xc0000082","access":"write",
/// "reason":"filter","action":"deny","policy":"web.toml","line":12,"digest":"…"}`; with `vm`, and with
/// `value`, `rip`, `held_back` where there is something to say.
///
/// `{"schema":1,"time":1700000000.123456789,"vcpu":0,"dropped":9,"held_back":300}`: how many events of the
/// vCPU are in no line so far, as in [`VcpuDrops`]. A line with `dropped` is one of these.
///
/// A file that it creates only its owner may read and write: values and RIP give away where a guest's
/// kernel is. One that is there keeps its mode.
#[derive(Debug)]
pub struct JsonLines {
    path: PathBuf,
    vm: String,
    file: File,
    /// Where the last line ended that was written whole: if the file does, too, so it does with a line.
    end: Option<u64>,
    most: u64,
    failed: u64,
    /// How often to ask for the lock.
    patience: u32,
}

/// How often the lock is asked for, a millisecond apart. Others have it for one line.
const PATIENCE: u32 = 100;

/// How often a file is looked for that others keep putting aside.
const TRIES: u32 = 16;

/// Whether others wait while this writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Turn {
    Ours,
    Anyones,
}

impl JsonLines {
    /// Appends to the file at `path`. Beyond `most` bytes it is renamed to `path.1`, in whose place
    /// it comes, and a new one is begun. `vm` is what the lines call the VM; empty for nothing.
    ///
    /// # Errors
    /// The file cannot be opened.
    pub fn append(path: &Path, most: u64, vm: &str) -> io::Result<Self> {
        Ok(Self {
            // A VMM that becomes a daemon goes to another directory, and its file does not.
            path: std::path::absolute(path)?,
            vm: vm.to_owned(),
            file: open(path)?,
            end: None,
            most: most.max(1),
            failed: 0,
            patience: PATIENCE,
        })
    }

    /// How many lines could not be written.
    #[must_use]
    pub const fn failed(&self) -> u64 {
        self.failed
    }

    fn write(&mut self, line: Map<String, Value>) {
        // A file's name or a VM's may hold what a terminal obeys.
        let json = Value::Object(line).to_string();
        let text = format!("{}\n", shown_json(&json));
        let written = self.put(text);
        calls::unlock(&self.file);
        if written.is_err() {
            self.failed += 1;
        }
    }

    /// Writes a line at the end of the file at the path, with the lock if it can be had.
    fn put(&mut self, mut text: String) -> io::Result<()> {
        let (turn, mut length) = self.take_turn()?;
        // A kill or a full disk may have cut the last line: that one is ended first.
        if Some(length) != self.end && is_cut(&self.file, length)? {
            text.insert(0, '\n');
        }
        let is_full = length > 0 && length + text.len() as u64 > self.most;
        // Who has not the lock might put aside a file that another has just begun.
        if is_full && turn == Turn::Ours && self.rotate().is_ok() {
            (_, length) = self.take_turn()?;
            if length == 0 && text.starts_with('\n') {
                text.remove(0);
            }
        }
        self.end = None;
        write_once(&mut self.file, text.as_bytes())?;
        self.end = Some(length + text.len() as u64);
        Ok(())
    }

    /// Takes the lock of the file that is at the path by now: whether it was to be had, and the file's
    /// length. Where that file cannot be opened, or is another each time, the old one goes on.
    fn take_turn(&mut self) -> io::Result<(Turn, u64)> {
        let mut turn = self.lock();
        for _ in 0..TRIES {
            if self.is_at_path()? {
                break;
            }
            // Another has put it aside.
            let Ok(file) = open(&self.path) else {
                break;
            };
            (self.file, self.end) = (file, None);
            turn = self.lock();
        }
        Ok((turn, self.file.metadata()?.len()))
    }

    fn is_at_path(&self) -> io::Result<bool> {
        let own = self.file.metadata()?;
        let is_own = |there: fs::Metadata| (there.dev(), there.ino()) == (own.dev(), own.ino());
        Ok(fs::metadata(&self.path).is_ok_and(is_own))
    }

    fn lock(&mut self) -> Turn {
        for left in (0..self.patience).rev() {
            match calls::try_lock(&self.file) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                // Where there are no locks, nobody has one.
                Ok(()) | Err(_) => {
                    self.patience = PATIENCE;
                    return Turn::Ours;
                }
            }
            if left > 0 {
                thread::sleep(Duration::from_millis(1));
            }
        }
        self.patience = 1;
        Turn::Anyones
    }

    /// Where it fails, the old file goes on: too large is better than lost.
    fn rotate(&self) -> io::Result<()> {
        if !fs::symlink_metadata(&self.path).is_ok_and(|found| found.is_file()) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let mut old = self.path.clone().into_os_string();
        old.push(".1");
        fs::rename(&self.path, old)
    }

    fn line(&self, time: SystemTime) -> Map<String, Value> {
        let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
        let mut line = Map::new();
        line.insert("schema".into(), json!(1));
        line.insert("time".into(), json!(since.as_secs_f64()));
        if !self.vm.is_empty() {
            line.insert("vm".into(), json!(self.vm));
        }
        line
    }
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .create(true)
        .append(true)
        .read(true)
        .mode(0o600)
        .open(path)
}

/// Whether a file of this length, if it is one that has a length, ends in the middle of a line.
fn is_cut(file: &File, length: u64) -> io::Result<bool> {
    let Some(at) = length.checked_sub(1) else {
        return Ok(false);
    };
    let mut last = [0];
    file.read_exact_at(&mut last, at)?;
    Ok(last != *b"\n")
}

/// One write: what it leaves out cannot be put behind it, where others may have written since.
fn write_once(file: &mut File, bytes: &[u8]) -> io::Result<()> {
    loop {
        match file.write(bytes) {
            Ok(written) if written == bytes.len() => return Ok(()),
            Ok(_) => return Err(io::ErrorKind::WriteZero.into()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

impl Sink for JsonLines {
    fn event(&mut self, event: &Event) {
        let mut line = self.line(event.time);
        let mut put = |key: &str, value: Value| line.insert(key.into(), value);
        put("vcpu", json!(event.vcpu.get()));
        put("msr", json!(event.index.to_string()));
        put("access", json!(event.access.to_string()));
        put("reason", json!(event.reason.to_string()));
        put("action", json!(event.deed.to_string()));
        if let Some(value) = event.value {
            put("value", json!(format!("{value:#x}")));
        }
        if let Some(rip) = event.rip {
            put("rip", json!(format!("{rip:#x}")));
        }
        if let Origin::Line(at) = event.origin {
            put("policy", json!(event.file));
            put("line", json!(at.number));
        }
        put("digest", json!(event.digest.to_string()));
        if event.held_back > 0 {
            put("held_back", json!(event.held_back));
        }
        self.write(line);
    }

    fn dropped(&mut self, drops: VcpuDrops) {
        let mut line = self.line(SystemTime::now());
        line.insert("vcpu".into(), json!(drops.vcpu.get()));
        line.insert("dropped".into(), json!(drops.dropped));
        line.insert("held_back".into(), json!(drops.held_back));
        self.write(line);
    }
}

/// Events as `tracing` events of the target `msrgate`: refusals as warnings, the rest as info.
#[cfg(feature = "tracing")]
#[derive(Clone, Copy, Debug, Default)]
pub struct TracingSink;

#[cfg(feature = "tracing")]
impl Sink for TracingSink {
    fn event(&mut self, event: &Event) {
        let Event {
            vcpu,
            index,
            access,
            reason,
            deed,
            held_back,
            ..
        } = event;
        let vcpu = vcpu.get();
        let (value, rip) = (event.value, event.rip);
        if deed.is_refusal() {
            tracing::warn!(target: "msrgate", vcpu, msr = %index, %access, %reason, action = %deed, value, rip, held_back, "refused");
        } else {
            tracing::info!(target: "msrgate", vcpu, msr = %index, %access, %reason, action = %deed, value, rip, held_back, "seen");
        }
    }

    fn dropped(&mut self, drops: VcpuDrops) {
        let VcpuDrops {
            vcpu,
            dropped,
            held_back,
        } = drops;
        tracing::warn!(target: "msrgate", vcpu = vcpu.get(), dropped, held_back, "events lost");
    }
}

/// A thread that hands events to sinks. When it is dropped it hands over what is left, and ends.
#[derive(Debug)]
#[must_use = "the thread ends when this is dropped"]
pub struct EventThread {
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<Events>>,
}

/// How often the queues are looked at.
const INTERVAL: Duration = Duration::from_millis(20);

/// How often it is said how many were lost: a guest's flood is not to become one of such lines.
const TELL_AGAIN: Duration = Duration::from_secs(1);

/// What sinks were told of what was lost.
#[derive(Default)]
struct Told {
    drops: Vec<VcpuDrops>,
    at: Option<Instant>,
}

impl Events {
    /// Hands events to `sinks` on a thread of its own, in which all signals are blocked.
    ///
    /// # Errors
    /// There is no thread to be had.
    pub fn spawn(self, mut sinks: Vec<Box<dyn Sink>>) -> io::Result<EventThread> {
        let (stop, stopped) = channel();
        let body = move || {
            let mut events = self;
            let mut told = Told::default();
            loop {
                let is_last = stopped.recv_timeout(INTERVAL) != Err(RecvTimeoutError::Timeout);
                hand_over(&mut events, &mut sinks);
                if is_last || told.is_due() {
                    told.tell(&events, &mut sinks);
                }
                if is_last {
                    return events;
                }
            }
        };
        let thread = signals::while_blocked(|| {
            thread::Builder::new()
                .name("msrgate-events".into())
                .spawn(body)
        })?;
        Ok(EventThread {
            stop: Some(stop),
            thread: Some(thread),
        })
    }
}

fn hand_over(events: &mut Events, sinks: &mut [Box<dyn Sink>]) {
    let mut count = 0;
    events.drain(|event| {
        count += 1;
        for sink in &mut *sinks {
            sink.event(&event);
        }
    });
    if count > 0 {
        for sink in sinks {
            sink.flush();
        }
    }
}

impl Told {
    fn is_due(&self) -> bool {
        self.at.is_none_or(|at| at.elapsed() >= TELL_AGAIN)
    }

    /// Tells what has changed.
    fn tell(&mut self, events: &Events, sinks: &mut [Box<dyn Sink>]) {
        let drops = events.drops();
        let new: Vec<_> = drops
            .iter()
            .filter(|one| !self.drops.contains(one))
            .collect();
        if new.is_empty() {
            return;
        }
        for sink in sinks {
            for one in &new {
                sink.dropped(**one);
            }
            sink.flush();
        }
        (self.drops, self.at) = (drops, Some(Instant::now()));
    }
}

impl EventThread {
    /// Hands over what is left, ends the thread, and gives the reader back; `None` if a sink
    /// panicked.
    #[must_use]
    pub fn stop(mut self) -> Option<Events> {
        self.end()
    }

    fn end(&mut self) -> Option<Events> {
        drop(self.stop.take());
        self.thread.take()?.join().ok()
    }
}

impl Drop for EventThread {
    fn drop(&mut self) {
        self.end();
    }
}

#[cfg(test)]
mod tests;
