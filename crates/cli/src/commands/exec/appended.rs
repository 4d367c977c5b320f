//! The files of `--events` and `--summary`, to which a run appends.

use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{FileTypeExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use crate::failure::Failure;
use crate::files::Inode;
use crate::named::name;

/// A file that [`open`] has made. Dropping this value removes the file if it is still empty, so that a run
/// that does not begin leaves no file behind. A run that begins never drops this value, because the VMM
/// replaces the process.
#[derive(Debug)]
pub(super) struct Made {
    path: PathBuf,
    inode: Inode,
}

/// Opens a file so that writes append to it. A write to the file never waits: a pipe whose reader stalls
/// returns EAGAIN. A named pipe is opened for reading as well, because the opening would otherwise wait
/// until another process reads from the pipe.
///
/// # Errors
/// The file cannot be written.
pub(super) fn open(path: &Path) -> Result<(File, Option<Made>), Failure> {
    opened(path).map_err(|error| Failure::Input {
        what: name(path),
        why: format!("cannot be written: {error}"),
    })
}

fn opened(path: &Path) -> io::Result<(File, Option<Made>)> {
    let mut options = File::options();
    options
        .append(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY);
    match options.clone().create_new(true).open(path) {
        Ok(file) => {
            let made = Made::new(&file, path.to_owned());
            Ok((file, made))
        }
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {
            let there = fs::metadata(path);
            let is_pipe = there.as_ref().is_ok_and(|file| file.file_type().is_fifo());
            // The name may be a link to a file that is not there.
            let file = options.create(true).read(is_pipe).open(path)?;
            let path = fs::canonicalize(path).ok().filter(|_| there.is_err());
            let made = path.and_then(|path| Made::new(&file, path));
            Ok((file, made))
        }
        Err(error) => Err(error),
    }
}

impl Made {
    /// Returns the value for a file that [`open`] has made. The last component of the path is not a symbolic
    /// link.
    fn new(file: &File, path: PathBuf) -> Option<Self> {
        let inode = Inode::of_open(file)?;
        Some(Self { path, inode })
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        let is_empty = fs::metadata(&self.path).is_ok_and(|file| file.len() == 0);
        if is_empty && Inode::behind(&self.path) == Some(self.inode) {
            // Another process may remove the file, too.
            let _ = fs::remove_file(&self.path);
        }
    }
}
