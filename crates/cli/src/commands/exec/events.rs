//! The file of `--events`. The watcher writes whole lines only, and does not wait for a slow reader: it
//! counts the lines that could not be written.

use std::fs::{self, File};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::path::Path;

use msrgate_policy::one_line;

use crate::named::name;
use crate::output::count;

/// The file of `--events`, and the numbers of VMs and of missing events for which it has
/// lines of their own.
pub(in crate::commands) struct Events {
    file: File,
    name: String,
    /// The numbers that no line of the file tells of yet.
    untold: Untold,
    /// The number of events that could not be written to the file, and the error of the first one.
    missing: Option<(u64, io::Error)>,
    /// True if the file ends in an incomplete line: it was there before the run, or a write failed in the
    /// middle of a line.
    is_cut: bool,
}

/// Numbers that the file has yet to tell, each in a line of its own.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Untold {
    /// The number of VMs that have come behind the policy. By this line a run that refused nothing differs from one
    /// that was not recorded.
    pub(super) guarded: u64,
    /// The number of events that were lost.
    pub(super) dropped: u64,
    /// The number of events that the library held back, because of its limit on events per second or a full
    /// ring.
    pub(super) held_back: u64,
}

/// Returns true if the file's last line does not end in a line feed. Returns false for a file that this user
/// may not read.
fn ends_in_part_of_line(path: &Path) -> bool {
    let is_file = fs::metadata(path).is_ok_and(|file| file.is_file());
    let mut last = [b'\n'];
    let read = || {
        let mut file = File::open(path)?;
        file.seek(SeekFrom::End(-1))?;
        file.read_exact(&mut last)
    };
    is_file && { read }().is_ok() && last != *b"\n"
}

impl Events {
    /// Makes the value for the file that was opened by this path.
    pub(super) fn new(file: File, path: &Path) -> Self {
        Self {
            file,
            name: one_line(&name(path)),
            untold: Untold::default(),
            missing: None,
            is_cut: ends_in_part_of_line(path),
        }
    }

    /// The open file of `--events`.
    pub(super) const fn file(&self) -> &File {
        &self.file
    }

    /// Appends the number of VMs, the lines, and then the numbers of events that are missing in the file.
    pub(super) fn append(&mut self, lines: impl Iterator<Item = String>, untold: Untold) {
        let guarded = &mut self.untold.guarded;
        *guarded = guarded.saturating_add(untold.guarded);
        for line in lines {
            self.tell();
            if let Err(error) = self.put(&line) {
                self.untold.dropped = self.untold.dropped.saturating_add(1);
                let missing = self.missing.get_or_insert((0, error));
                missing.0 = missing.0.saturating_add(1);
            }
        }
        let Untold {
            dropped, held_back, ..
        } = &mut self.untold;
        *dropped = dropped.saturating_add(untold.dropped);
        *held_back = held_back.saturating_add(untold.held_back);
        self.tell();
    }

    /// Returns the sentence about events that could not be written to the file, or `None` if all were
    /// written.
    pub(super) fn loss(&self) -> Option<String> {
        let (missing, why) = self.missing.as_ref()?;
        let missing = usize::try_from(*missing).unwrap_or(usize::MAX);
        let events = count(missing, "event is", "events are");
        Some(format!("{events} missing in {}: {why}", self.name))
    }

    /// Writes the numbers of [`Untold`] to the file. A number that cannot be written is kept for the next
    /// call.
    fn tell(&mut self) {
        let line = |word: &str, number: u64| format!("{{\"schema\":1,{word}:{number}}}\n");
        let Untold {
            guarded,
            dropped,
            held_back,
        } = self.untold;
        if guarded > 0
            && self
                .put(&line("\"event\":\"vm\",\"guarded\"", guarded))
                .is_ok()
        {
            self.untold.guarded = 0;
        }
        if dropped > 0 && self.put(&line("\"dropped\"", dropped)).is_ok() {
            self.untold.dropped = 0;
        }
        if held_back > 0 && self.put(&line("\"held_back\"", held_back)).is_ok() {
            self.untold.held_back = 0;
        }
    }

    /// Appends a whole line to the file. If a write fails, the function removes the part of the line that
    /// was written.
    fn put(&mut self, line: &str) -> io::Result<()> {
        if self.is_cut {
            self.file.write_all(b"\n")?;
            self.is_cut = false;
        }
        let mut rest = line.as_bytes();
        while !rest.is_empty() {
            match self.file.write(rest) {
                Ok(0) => return Err(self.take_back(line, rest, io::ErrorKind::WriteZero.into())),
                Ok(written) => rest = rest.get(written..).unwrap_or_default(),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(self.take_back(line, rest, error)),
            }
        }
        Ok(())
    }

    /// Removes the part of a line that was written before an error, if that part is the end of the file.
    fn take_back(&mut self, line: &str, rest: &[u8], error: io::Error) -> io::Error {
        let written = (line.len() - rest.len()) as u64;
        if written > 0 {
            let end = self.file.stream_position().unwrap_or(0);
            let is_last = self
                .file
                .metadata()
                .is_ok_and(|file| file.is_file() && file.len() == end);
            let is_gone = is_last && self.file.set_len(end.saturating_sub(written)).is_ok();
            self.is_cut = !is_gone;
        }
        error
    }
}
