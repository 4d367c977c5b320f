//! Files that are written whole or not at all.

use std::fs::{self, File, Metadata, OpenOptions, Permissions};
use std::io::{self, IsTerminal as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _, fchown};
use std::path::{Path, PathBuf};

use msrgate_policy::one_line;
use tempfile::NamedTempFile;

use crate::descriptors;
use crate::failure::Failure;
use crate::files::Opened;

/// What a new file may be, less the umask.
const NEW: u32 = 0o666;

/// As many links in a row as the kernel follows.
const MOST_LINKS: usize = 40;

/// Bytes for people, or not for them: a terminal would take what an author wrote for commands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Content {
    Text,
    Binary,
}

/// The file that a path leads to.
enum Target {
    /// An open file, which may have no name any more: the path ends with a link of a process in `/proc`.
    Open(File),
    /// The path, in a folder without links, of what is no link: something that is there, or may be made.
    Path(PathBuf),
}

/// Where `path` leads to is the old file or the new one, never a part. A file that is there keeps its
/// mode and, where the caller may give it away, its owner. What is no file, such as a device or a
/// pipe, and what is open already, such as `/dev/stdout`, is written to and stays what it is.
///
/// # Errors
/// It cannot be written, or leads to a terminal and is not for people.
pub(crate) fn write(path: &Path, bytes: &[u8], content: Content) -> Result<(), Failure> {
    match written(path, bytes, content) {
        Ok(Written::All) => Ok(()),
        Ok(Written::NotToATerminal) => Err(Failure::Usage(format!(
            "this is binary, and {} is a terminal; name a file with -o",
            one_line(&crate::named::name(path))
        ))),
        Err(error) => Err(trouble(path, &error)),
    }
}

enum Written {
    All,
    NotToATerminal,
}

/// Writes to what is open already or no file.
fn pour(mut file: File, bytes: &[u8], content: Content) -> io::Result<Written> {
    if content == Content::Binary && file.is_terminal() {
        return Ok(Written::NotToATerminal);
    }
    file.write_all(bytes)?;
    Ok(Written::All)
}

/// Puts `bytes` in the place of a file that was read, which `name` led to.
///
/// # Errors
/// It cannot be written, or was changed or replaced since it was opened: then it stays as it is.
pub(crate) fn replace(name: &Path, read: &Opened, bytes: &[u8]) -> Result<(), Failure> {
    let prepared = prepared(&read.path, bytes, Some(&read.metadata));
    let file = prepared.map_err(|error| trouble(name, &error))?;
    // As late as can be: an editor may have saved the file meanwhile.
    let now = fs::symlink_metadata(&read.path);
    if !now.is_ok_and(|now| read.is_unchanged(&now)) {
        return Err(Failure::Input {
            what: crate::named::name(name),
            why: "was changed while msrgate worked on it, and is left as it is; run the command again"
                .to_owned(),
        });
    }
    let persisted = file.persist(&read.path);
    persisted.map_err(|error| trouble(name, &error.error))?;
    Ok(())
}

/// Returns true if a path leads to an open file and not to a name: `/dev/stdin`, `/proc/self/fd/3`.
pub(crate) fn is_open_file(path: &Path) -> bool {
    matches!(follow(path), Ok(Target::Open(_)))
}

fn trouble(path: &Path, error: &io::Error) -> Failure {
    Failure::Input {
        what: crate::named::name(path),
        // The error may name the temporary file, which is nobody's business.
        why: format!("cannot be written: {}", error.kind()),
    }
}

fn written(path: &Path, bytes: &[u8], content: Content) -> io::Result<Written> {
    // The kernel may refuse to follow a stranger's link, in a folder that all may write to. Then it is not
    // followed here, either.
    if let Err(error) = fs::metadata(path)
        && error.kind() != io::ErrorKind::NotFound
    {
        return Err(error);
    }
    let there = match follow(path)? {
        Target::Open(file) => return pour(file, bytes, content),
        Target::Path(there) => there,
    };
    let old = match fs::symlink_metadata(&there) {
        Ok(old) if old.is_file() => Some(old),
        Ok(_) => return pour(other(&there)?, bytes, content),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(error),
    };
    prepared(&there, bytes, old.as_ref())?.persist(&there)?;
    Ok(Written::All)
}

/// Follows the links at the end of a path, the last of which may lead to what is not there.
fn follow(path: &Path) -> io::Result<Target> {
    let mut path = path.to_owned();
    for _ in 0..MOST_LINKS {
        let Some(name) = path.file_name() else {
            return Ok(Target::Path(path));
        };
        let folder = folder(&path).canonicalize()?;
        let there = folder.join(name);
        // By the path as it is: a `/` at its end means a folder.
        match fs::symlink_metadata(&path) {
            Ok(one) if one.is_symlink() => {}
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Err(_) if path.as_os_str().as_encoded_bytes().ends_with(b"/") => {
                return Err(io::ErrorKind::NotADirectory.into());
            }
            Ok(_) | Err(_) => return Ok(Target::Path(there)),
        }
        if is_of_a_process(&folder) {
            return open_file(&there).map(Target::Open);
        }
        path = folder.join(fs::read_link(&there)?);
    }
    Err(io::Error::from_raw_os_error(libc::ELOOP))
}

fn folder(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if folder != Path::new("") => folder,
        _ => Path::new("."),
    }
}

/// Returns true for the folders in `/proc` whose links lead to files, whatever names those have.
fn is_of_a_process(folder: &Path) -> bool {
    let inside = folder.strip_prefix("/proc").ok();
    let first = inside.and_then(|inside| inside.iter().next()?.to_str());
    first.is_some_and(|first| first.parse::<u32>().is_ok())
}

/// Opens the file behind a link such as `/proc/7/fd/3` for writing. Its bytes stay.
fn open_file(link: &Path) -> io::Result<File> {
    let is_own = link.starts_with(fs::canonicalize("/proc/self")?)
        && folder(link).file_name().is_some_and(|name| name == "fd");
    let name = link.file_name().and_then(|name| name.to_str());
    match name.and_then(|name| name.parse().ok()) {
        // Where whoever opened it has come to.
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
        return Err(io::Error::other("it became a file meanwhile"));
    }
    Ok(opened)
}

/// A file that has all of its bytes, and will take the place of another, or of none.
///
/// Whoever may write to the folder may put something else in the place of the temporary name: owner and mode are given
/// to the open file.
fn prepared(path: &Path, bytes: &[u8], old: Option<&Metadata>) -> io::Result<NamedTempFile> {
    let mut builder = tempfile::Builder::new();
    if old.is_none() {
        builder.permissions(Permissions::from_mode(NEW));
    }
    // Until it has its owner and its mode, one that takes the place of another is its maker's alone.
    let mut file = builder.tempfile_in(folder(path))?;
    file.write_all(bytes)?;
    if let Some(old) = old {
        take_over(file.as_file(), old)?;
    }
    file.as_file().sync_all()?;
    Ok(file)
}

/// Gives an open file the owner and the mode of another.
fn take_over(file: &File, old: &Metadata) -> io::Result<()> {
    let new = file.metadata()?;
    if (new.uid(), new.gid()) != (old.uid(), old.gid()) {
        // Only the superuser may give any file away: then it is the caller's.
        let _ = fchown(file, Some(old.uid()), Some(old.gid()));
    }
    // The mode that was asked for at its making would lose what the umask takes.
    file.set_permissions(old.permissions())
}

#[cfg(test)]
mod tests;
