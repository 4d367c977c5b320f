//! A file that lines are appended to, and that logrotate may put aside.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// A file of whole lines, for [`TextLines`](super::TextLines) and others: each [`Write::write`] takes whole
/// lines, and is one `write` to the end of the file (`O_APPEND`). So several VMMs may write to one file, and
/// a kill cuts the last line at most.
///
/// A line that was cut is ended when the file is opened the next time, or by the next line if it was a full
/// disk that cut it. Whoever opens the file while another process is writing a line cannot tell that line from
/// a cut one: an empty line may follow it, which readers of JSON lines pass over.
///
/// The file is for logrotate to put aside: its `postrotate` has the VMM ask the file's [`Reopener`].
///
/// A file that it creates only its owner may read and write: values and RIP give away where a guest's
/// kernel is. One that exists keeps its mode.
#[derive(Debug)]
pub struct LogFile {
    path: PathBuf,
    file: File,
    /// Whether the last `write` ended in the middle of a line.
    is_cut: bool,
    reopen: Arc<AtomicBool>,
}

/// Asks a [`LogFile`] to open the file at its path anew. It stays with the VMM when the file has gone to
/// the thread that writes it.
#[derive(Clone, Debug)]
pub struct Reopener(Arc<AtomicBool>);

impl LogFile {
    /// Appends to the file at `path`, which is created if there is none.
    ///
    /// # Errors
    /// The file cannot be opened, or a line of it that was cut cannot be ended.
    pub fn append(path: &Path) -> io::Result<Self> {
        // A VMM that becomes a daemon changes its directory, and means the same file.
        let path = std::path::absolute(path)?;
        Ok(Self {
            file: open(&path)?,
            path,
            is_cut: false,
            reopen: Arc::default(),
        })
    }

    /// Returns the handle by which the file at the path is opened anew.
    #[must_use]
    pub fn reopener(&self) -> Reopener {
        Reopener(Arc::clone(&self.reopen))
    }

    /// Opens the file at the path if that was asked for. Where this fails the old file goes on, and the
    /// request stays.
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
    /// Has the next line go to the file that is at the path by then. A signal handler may call this.
    pub fn request(&self) {
        self.0.store(true, Ordering::Release);
    }

    /// Whether the request is still to be done: no line has come since, or the new file cannot be opened,
    /// which is tried again at each line.
    #[must_use]
    pub fn is_pending(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

impl Write for LogFile {
    /// Appends whole lines by one `write`. What that leaves out is an error, not a part: put behind it,
    /// the rest could come after a line of another process.
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

/// Opens a file to append to, and ends its last line if that was cut.
fn open(path: &Path) -> io::Result<File> {
    let mut file = OpenOptions::new()
        .create(true)
        .append(true)
        .read(true)
        .mode(0o600)
        .open(path)?;
    let length = file.metadata()?.len();
    let mut last = *b"\n";
    // What is no file has no length. A file that another has truncated meanwhile has no such byte.
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
