//! Files that are written whole or not at all.

use std::fs::{self, Metadata, OpenOptions, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
use std::path::Path;

use crate::failure::Failure;

/// What a new file may be, less the umask.
const NEW: u32 = 0o666;

/// Where `path` leads to is the old file or the new one, never a part. A file that is there keeps its
/// mode and, where the caller may give it away, its owner. What is no file, such as a device or a
/// pipe, is written to and stays what it is.
pub(crate) fn write(path: &Path, bytes: &[u8]) -> Result<(), Failure> {
    let trouble = |error: io::Error| Failure::Input {
        what: path.display().to_string(),
        // The error may name the temporary file, which is nobody's business.
        why: format!("cannot be written: {}", error.kind()),
    };
    let written = match fs::metadata(path) {
        Ok(old) if old.is_file() => {
            fs::canonicalize(path).and_then(|there| replace(&there, bytes, Some(&old)))
        }
        Ok(_) => {
            let opened = OpenOptions::new().write(true).open(path);
            opened.and_then(|mut other| other.write_all(bytes))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => replace(path, bytes, None),
        Err(error) => Err(error),
    };
    written.map_err(trouble)
}

/// Puts a file in the place of another, or of none.
fn replace(path: &Path, bytes: &[u8], old: Option<&Metadata>) -> io::Result<()> {
    let folder = match path.parent() {
        Some(folder) if folder != Path::new("") => folder,
        _ => Path::new("."),
    };
    let mut builder = tempfile::Builder::new();
    if old.is_none() {
        builder.permissions(Permissions::from_mode(NEW));
    }
    // Until it has its owner and its mode, one that takes the place of another is its maker's alone.
    let mut file = builder.tempfile_in(folder)?;
    file.write_all(bytes)?;
    if let Some(old) = old {
        let new = file.as_file().metadata()?;
        if (new.uid(), new.gid()) != (old.uid(), old.gid()) {
            // Only the superuser may give any file away: then it is the caller's.
            let _ = chown(file.path(), Some(old.uid()), Some(old.gid()));
        }
        // The mode that was asked for at its making would lose what the umask takes.
        file.as_file().set_permissions(old.permissions())?;
    }
    file.as_file().sync_all()?;
    file.persist(path)?;
    Ok(())
}
