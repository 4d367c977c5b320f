//! A log file to which lines are appended, and which logrotate may rename.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// A log file of whole lines, for [`TextLines`](super::TextLines) and other writers of lines. Each
/// [`Write::write`] takes whole lines, and is one `write` to the end of the file (`O_APPEND`). So several
/// VMMs may write to one file, and if a VMM is killed, at most its last line is cut.
///
/// If a line was cut because its writer was killed, the next process that opens the file ends that line
/// first. If a full disk has cut a line, the next write ends that line first. If another process is writing
/// a line while this process opens the file, that line looks cut, too: an empty line may then follow it,
/// which readers of JSON lines skip.
///
/// If logrotate renames the file, logrotate's `postrotate` script has to make the VMM call
/// [`Reopener::request`].
///
/// Only the owner can read and write a new log file, because values and RIP reveal the addresses of a
/// guest's kernel. A log file that exists already keeps its mode.
#[derive(Debug)]
pub struct LogFile {
    path: PathBuf,
    file: File,
    /// True if the last `write` took only the beginning of a line.
    is_cut: bool,
    reopen: Arc<AtomicBool>,
}

/// The handle by which a VMM asks a [`LogFile`] to open the file's path again. The VMM still has this handle
/// after the VMM has moved the [`LogFile`] to the thread that writes events.
#[derive(Clone, Debug)]
pub struct Reopener(Arc<AtomicBool>);

impl LogFile {
    /// Opens the file at `path` for appending, and creates the file if there is none.
    ///
    /// # Errors
    /// The error of the call that failed to open the file, or to end its cut last line.
    pub fn append(path: &Path) -> io::Result<Self> {
        // A VMM that becomes a daemon changes its directory, but the path must name the same file.
        let path = std::path::absolute(path)?;
        Ok(Self {
            file: open(&path)?,
            path,
            is_cut: false,
            reopen: Arc::default(),
        })
    }

    /// Returns the handle by which the VMM asks this log file to open its path again.
    #[must_use]
    pub fn reopener(&self) -> Reopener {
        Reopener(Arc::clone(&self.reopen))
    }

    /// Opens the path again if [`Reopener::request`] asked for that. If this fails, the old file stays in
    /// use, and the request stays pending.
    fn follow(&mut self) {
        if !self.reopen.swap(false, Ordering::AcqRel) {
            return;
        }
        match open(&self.path) {
            Ok(file) => (self.file, self.is_cut) = (file, false),
            Err(_) => self.reopen.store(true, Ordering::Release),
        }
    }
}

impl Reopener {
    /// Requests that the next line goes to the file that the path names when that line is written. A signal
    /// handler may call this.
    pub fn request(&self) {
        self.0.store(true, Ordering::Release);
    }

    /// Tells if the request to reopen the file is pending: no line was written since, or the new file could
    /// not be opened. [`LogFile`] tries again to open the file at each line.
    #[must_use]
    pub fn is_pending(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

impl Write for LogFile {
    /// Appends whole lines by one `write`. A partial write is an error: if the rest of a line were written
    /// later, it could follow a line of another process.
    fn write(&mut self, lines: &[u8]) -> io::Result<usize> {
        self.follow();
        let ended;
        let bytes = if self.is_cut {
            ended = [b"\n", lines].concat();
            &ended
        } else {
            lines
        };
        let written = self.file.write(bytes)?;
        if written == bytes.len() {
            self.is_cut = false;
            return Ok(lines.len());
        }
        self.is_cut |= written > 0;
        Err(io::ErrorKind::WriteZero.into())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Opens a file to append to, and ends its last line if that line was cut.
fn open(path: &Path) -> io::Result<File> {
    let mut file = OpenOptions::new()
        .create(true)
        .append(true)
        .read(true)
        .mode(0o600)
        .open(path)?;
    let length = file.metadata()?.len();
    let mut last = *b"\n";
    // The length is 0 for a device file, which has no last line. If another process has truncated the file
    // since, the read finds no byte, and `last` stays a line's end.
    if let Some(at) = length.checked_sub(1) {
        file.read_at(&mut last, at)?;
    }
    if last != *b"\n" {
        file.write_all(b"\n")?;
    }
    Ok(file)
}

#[cfg(test)]
mod tests;
