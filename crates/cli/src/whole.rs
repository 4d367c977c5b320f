//! The writing of files so that a reader sees the whole old file or the whole new one.

use std::fs::{self, File, Metadata, OpenOptions, Permissions};
use std::io::{self, IsTerminal as _, Write as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;

use msrgate_kvm::sys::while_blocked;
use rustix::fs::{AtFlags, CWD, linkat};
use tempfile::TempPath;

use crate::access::{Access, Given};
use crate::descriptors;
use crate::failure::Failure;
use crate::files::Opened;
use crate::links::{Target, folder, follow, missing_folder};
use crate::named::shown;
use crate::processor::note;

/// The mode of a new file before the umask.
const NEW: u32 = 0o666;

/// The mode of a file that replaces another one, until it has its owner and access: only the caller can open it.
const PRIVATE: u32 = 0o600;

/// The kind of the bytes to write. Binary bytes do not go to a terminal, which could take them for commands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Content {
    Text,
    Binary,
}

/// Writes `bytes` as the whole content of the file that `path` leads to. Any process that opens the file
/// reads all of the old bytes or all of the new ones. An existing file keeps its [access](Access), and its
/// owner if the caller may set the owner. A device, a pipe, or a file that is already open, such as
/// `/dev/stdout`, is not replaced: the bytes are written to it.
///
/// # Errors
/// The file cannot be written, is [protected](check_protection), or binary bytes would go to a terminal.
pub(crate) fn write(path: &Path, bytes: &[u8], content: Content) -> Result<(), Failure> {
    match written(path, bytes, content) {
        Ok(Written::All) => Ok(()),
        Ok(Written::NotToATerminal) => Err(Failure::Usage(format!(
            "the output is binary, and {} is a terminal; name a file with -o",
            shown(path)
        ))),
        Err(error) => Err(unwritable(path, &error)),
    }
}

enum Written {
    All,
    NotToATerminal,
}

/// Writes to an open file, or to something that is no regular file.
fn pour(mut file: File, bytes: &[u8], content: Content) -> io::Result<Written> {
    if content == Content::Binary && file.is_terminal() {
        return Ok(Written::NotToATerminal);
    }
    file.write_all(bytes)?;
    Ok(Written::All)
}

/// Replaces the content of the file `read` by `bytes`. The user called the file `name`.
///
/// # Errors
/// The file cannot be written, is [protected](check_protection), or was changed or replaced since it was opened; the
/// file then stays as it is.
pub(crate) fn replace(name: &Path, read: &Opened, bytes: &[u8]) -> Result<(), Failure> {
    check_protection(&read.metadata).map_err(|error| unwritable(name, &error))?;
    let access = read
        .access
        .as_ref()
        .map_err(|error| unwritable(name, error))?;
    let given = while_blocked(|| {
        let new = Prepared::new(&read.path, bytes, Some(access));
        let new = new.map_err(|error| unwritable(name, &error))?;
        // This check comes as late as possible: an editor may have saved the file meanwhile.
        let now = fs::symlink_metadata(&read.path);
        if !now.is_ok_and(|now| read.is_unchanged(&now)) {
            return Err(Failure::Input {
                what: crate::named::name(name),
                why: "another process changed the file while msrgate worked on it, so msrgate did not write it; run the command again"
                    .to_owned(),
            });
        }
        new.rename(&read.path)
            .map_err(|error| unwritable(name, &error))
    })?;
    say_what_changed(name, &read.metadata, given);
    Ok(())
}

/// Checks that [`write()`] can make a file at `path`, where no file is. Nothing is left of the attempt.
///
/// # Errors
/// The folder is missing, or takes no new file.
pub(crate) fn check_new(path: &Path) -> Result<(), Failure> {
    let made = tempfile::tempfile_in(folder(path));
    made.map(drop).map_err(|error| unwritable(path, &error))
}

/// Writes a new file. The last of its links, if there are some, may lead to no file yet.
///
/// # Errors
/// The file cannot be written, or another process has made it in the meantime; that file then stays as it is.
pub(crate) fn create(path: &Path, bytes: &[u8]) -> Result<(), Failure> {
    let created = follow(path).and_then(|target| match target {
        Target::Open(link) => Err(io::Error::other(format!("{} is open", shown(&link)))),
        Target::Path(there) => while_blocked(|| Prepared::new(&there, bytes, None)?.create(&there)),
    });
    created.map_err(|error| match error.kind() {
        io::ErrorKind::AlreadyExists => Failure::Input {
            what: crate::named::name(path),
            why: "another process made the file while msrgate worked, so msrgate did not write it"
                .to_owned(),
        },
        _ => unwritable(path, &error),
    })
}

/// Returns the failure of a file that cannot be written.
pub(crate) fn unwritable(path: &Path, error: &io::Error) -> Failure {
    Failure::Input {
        what: crate::named::name(path),
        why: format!("cannot be written: {}", unwritten(path, error)),
    }
}

/// Returns the reason of an error of writing. If something is missing, it is the folder, because the command
/// would make a missing file.
fn unwritten(path: &Path, error: &io::Error) -> String {
    let missing = match error.kind() {
        io::ErrorKind::NotFound => missing_folder(path),
        _ => None,
    };
    match (error.kind(), missing) {
        (_, Some(missing)) if missing != folder(path) => {
            format!(
                "the link leads to a folder that does not exist, {}",
                shown(&missing)
            )
        }
        (_, Some(missing)) => format!("there is no folder {}", shown(&missing)),
        (io::ErrorKind::PermissionDenied, _) => {
            format!(
                "permission denied for the file or for its folder, {}",
                shown(folder(path))
            )
        }
        (io::ErrorKind::ReadOnlyFilesystem, _) => "the file system is read-only".to_owned(),
        // This program has made the error, with a text for the user.
        (io::ErrorKind::Other, _) => error.to_string(),
        // The error may name the temporary file, which tells the reader nothing.
        (kind, _) => kind.to_string(),
    }
}

/// Checks that a file is not protected: that it has the permission to write for its owner, its group or others.
///
/// A file is replaced through its folder, so the kernel does not look at the permissions of the file. An owner who
/// took them away does not want the content to change.
///
/// # Errors
/// No user has the permission to write to the file.
pub(crate) fn check_protection(file: &Metadata) -> io::Result<()> {
    const WRITE: u32 = 0o222;
    if file.mode() & WRITE != 0 {
        return Ok(());
    }
    Err(io::Error::other(
        "the file is protected: its mode permits no user to write to it; permit it with chmod u+w, or name another file",
    ))
}

fn written(path: &Path, bytes: &[u8], content: Content) -> io::Result<Written> {
    // In a folder where every user may write, the kernel may refuse to follow another user's link. Then this
    // function must not follow the link, either.
    if let Err(error) = fs::metadata(path)
        && error.kind() != io::ErrorKind::NotFound
    {
        return Err(error);
    }
    let there = match follow(path)? {
        Target::Open(link) => return pour(open_file(&link)?, bytes, content),
        Target::Path(there) => there,
    };
    match fs::symlink_metadata(&there) {
        Ok(old) if old.is_file() => {
            check_protection(&old)?;
            let access = Access::of_path(&there, &old)?;
            let given = put(&there, bytes, Some(&access))?;
            say_what_changed(path, &old, given);
        }
        Ok(_) => return pour(other(&there)?, bytes, content),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            put(&there, bytes, None)?;
        }
        Err(error) => return Err(error),
    }
    Ok(Written::All)
}

/// Prints to standard error what a replaced file has lost: its group, or its other hard links.
fn say_what_changed(name: &Path, old: &Metadata, given: Given) {
    if given == Given::WithoutGroup {
        note(&format!(
            "msrgate could not restore the group {1} of {0}, so members of the group now have only the rights of others; restore group and mode with chgrp and chmod",
            shown(name),
            old.gid()
        ));
    }
    if old.nlink() > 1 {
        note(&format!(
            "{} was one of {} hard links, and is now a separate file; the other names keep the old content",
            shown(name),
            old.nlink()
        ));
    }
}

/// Opens the file behind a link such as `/proc/7/fd/3` for writing. The file keeps its bytes.
fn open_file(link: &Path) -> io::Result<File> {
    let is_own = link.starts_with(fs::canonicalize("/proc/self")?)
        && folder(link).file_name().is_some_and(|name| name == "fd");
    let name = link.file_name().and_then(|name| name.to_str());
    match name.and_then(|name| name.parse().ok()) {
        // The duplicate shares its position in the file with the original descriptor, so the output
        // continues there.
        Some(number) if is_own => descriptors::duplicate(number),
        _ => OpenOptions::new()
            .append(true)
            .custom_flags(libc::O_NOCTTY)
            .open(link),
    }
}

/// Opens a device, a pipe or the like for writing.
fn other(path: &Path) -> io::Result<File> {
    let opened = OpenOptions::new()
        .write(true)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NOCTTY)
        .open(path)?;
    if opened.metadata()?.is_file() {
        return Err(io::Error::other(
            "it was a device or a pipe, and is a file now",
        ));
    }
    Ok(opened)
}

/// Puts a new file at `path`, in place of the file with the access `old`, if there is one. Ctrl-C and other signals
/// wait meanwhile, so that none of them leaves the temporary file.
fn put(path: &Path, bytes: &[u8], old: Option<&Access>) -> io::Result<Given> {
    while_blocked(|| Prepared::new(path, bytes, old)?.rename(path))
}

/// A file with the whole content under a temporary name, which is about to get the name of the file to write.
struct Prepared {
    name: TempPath,
    given: Given,
}

impl Prepared {
    /// Makes the file, with its content, owner and access.
    ///
    /// The file gets the temporary name when it is complete. So if this process is killed, the name is left
    /// only if that happens before [`Self::rename`], which follows at once. File systems without unnamed files
    /// are the exception: there the file has the name from the start.
    fn new(path: &Path, bytes: &[u8], old: Option<&Access>) -> io::Result<Self> {
        let folder = folder(path);
        let mode = old.map_or(NEW, |_| PRIVATE);
        let mut builder = tempfile::Builder::new();
        if let Ok(file) = unnamed(folder, mode) {
            let given = fill(&file, bytes, old)?;
            // This fails if /proc is not mounted.
            if let Ok(named) = builder.make_in(folder, |name| link(&file, name)) {
                let name = named.into_temp_path();
                return Ok(Self { name, given });
            }
        }
        builder.permissions(Permissions::from_mode(mode));
        let named = builder.tempfile_in(folder)?;
        let given = fill(named.as_file(), bytes, old)?;
        let name = named.into_temp_path();
        Ok(Self { name, given })
    }

    /// Gives the file its name, which no file may have.
    fn create(self, path: &Path) -> io::Result<()> {
        Ok(self.name.persist_noclobber(path)?)
    }

    /// Gives the file its name, in place of the file that has it.
    fn rename(self, path: &Path) -> io::Result<Given> {
        self.name.persist(path)?;
        Ok(self.given)
    }
}

/// Makes a file without a name.
fn unnamed(folder: &Path, mode: u32) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.write(true).custom_flags(libc::O_TMPFILE).mode(mode);
    options.open(folder)
}

/// Gives a name to a file without a name.
fn link(file: &File, name: &Path) -> io::Result<()> {
    let open = format!("/proc/self/fd/{}", file.as_raw_fd());
    Ok(linkat(CWD, open, CWD, name, AtFlags::SYMLINK_FOLLOW)?)
}

/// Writes the content, and sets owner and access. Both are set on the open file, because any user who may write
/// to the folder could put another file in place of a temporary name.
fn fill(mut file: &File, bytes: &[u8], old: Option<&Access>) -> io::Result<Given> {
    file.write_all(bytes)?;
    // The mode is set now, because the umask would clear bits of a mode that is given when the file is made.
    let given = old.map_or(Ok(Given::Whole), |old| old.give(file))?;
    file.sync_all()?;
    Ok(given)
}

#[cfg(test)]
mod tests;
