//! Files that are written whole or not at all.

use std::fs::{self, File, Metadata, OpenOptions, Permissions};
use std::io::{self, IsTerminal as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;

use tempfile::NamedTempFile;

use crate::access::{Access, Given};
use crate::descriptors;
use crate::failure::Failure;
use crate::files::Opened;
use crate::links::{Target, folder, follow};
use crate::named::shown;
use crate::processor::note;

/// What a new file may be, less the umask.
const NEW: u32 = 0o666;

/// Bytes for people, or not for them: a terminal would take what an author wrote for commands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Content {
    Text,
    Binary,
}

/// Where `path` leads to is the old file or the new one, never a part. A file that is there keeps the
/// [access](Access) to it and, where the caller may give it away, its owner. What is no file, such as a device or a
/// pipe, and what is open already, such as `/dev/stdout`, is written to and stays what it is.
///
/// # Errors
/// It cannot be written, or leads to a terminal and is not for people.
pub(crate) fn write(path: &Path, bytes: &[u8], content: Content) -> Result<(), Failure> {
    match written(path, bytes, content) {
        Ok(Written::All) => Ok(()),
        Ok(Written::NotToATerminal) => Err(Failure::Usage(format!(
            "a program is binary, and {} is a terminal; name a file with -o",
            shown(path)
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
    let access = read.access.as_ref().map_err(|error| trouble(name, error))?;
    let prepared = prepared(&read.path, bytes, Some(access));
    let new = prepared.map_err(|error| trouble(name, &error))?;
    // As late as can be: an editor may have saved the file meanwhile.
    let now = fs::symlink_metadata(&read.path);
    if !now.is_ok_and(|now| read.is_unchanged(&now)) {
        return Err(Failure::Input {
            what: crate::named::name(name),
            why: "another program changed the file while msrgate worked on it, and msrgate left it alone; run the command again"
                .to_owned(),
        });
    }
    let persisted = new.file.persist(&read.path);
    persisted.map_err(|error| trouble(name, &error.error))?;
    say_what_changed(name, &read.metadata, new.given);
    Ok(())
}

fn trouble(path: &Path, error: &io::Error) -> Failure {
    Failure::Input {
        what: crate::named::name(path),
        // The error may name the temporary file, which means nothing to the reader.
        why: format!("cannot be written: {}", unwritten(path, error.kind())),
    }
}

/// Returns the reason of an error of writing. A file that is not there would be made: its folder is missing.
fn unwritten(path: &Path, kind: io::ErrorKind) -> String {
    let folder = folder(path);
    match kind {
        io::ErrorKind::NotFound if !folder.is_dir() => {
            format!("there is no folder {}", shown(folder))
        }
        io::ErrorKind::PermissionDenied => {
            format!(
                "permission denied for it or for its folder, {}",
                shown(folder)
            )
        }
        kind => kind.to_string(),
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
        Target::Open(link) => return pour(open_file(&link)?, bytes, content),
        Target::Path(there) => there,
    };
    match fs::symlink_metadata(&there) {
        Ok(old) if old.is_file() => {
            let access = Access::of_path(&there, &old)?;
            let new = prepared(&there, bytes, Some(&access))?;
            new.file.persist(&there)?;
            say_what_changed(path, &old, new.given);
        }
        Ok(_) => return pour(other(&there)?, bytes, content),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            prepared(&there, bytes, None)?.file.persist(&there)?;
        }
        Err(error) => return Err(error),
    }
    Ok(Written::All)
}

/// Says on stderr what is not as it was after a file was replaced.
fn say_what_changed(name: &Path, old: &Metadata, given: Given) {
    if given == Given::WithoutGroup {
        note(&format!(
            "{} could not be given its group {}, whose members have the rights of others now; give it back with chgrp and chmod",
            shown(name),
            old.gid()
        ));
    }
    if old.nlink() > 1 {
        note(&format!(
            "{} was one of {} hard links, and is a file of its own now; the other names keep the old file",
            shown(name),
            old.nlink()
        ));
    }
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
        return Err(io::Error::other("it has become a file"));
    }
    Ok(opened)
}

/// A file that has all of its bytes, and will take the place of another, or of none.
struct Prepared {
    file: NamedTempFile,
    given: Given,
}

/// Whoever may write to the folder may put something else in the place of the temporary name: owner and access are given
/// to the open file.
fn prepared(path: &Path, bytes: &[u8], old: Option<&Access>) -> io::Result<Prepared> {
    let mut builder = tempfile::Builder::new();
    if old.is_none() {
        builder.permissions(Permissions::from_mode(NEW));
    }
    // Until it has its owner and its access, one that takes the place of another is its maker's alone.
    let mut file = builder.tempfile_in(folder(path))?;
    file.write_all(bytes)?;
    // The mode that was asked for at its making would lose what the umask takes.
    let given = old.map_or(Ok(Given::Whole), |old| old.give(file.as_file()))?;
    file.as_file().sync_all()?;
    Ok(Prepared { file, given })
}

#[cfg(test)]
mod tests;
