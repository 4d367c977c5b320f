//! The file that a path leads to, behind all links at its end.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

/// As many links in a row as the kernel follows.
const MOST_LINKS: usize = 40;

/// The file that a path leads to.
pub(crate) enum Target {
    /// A link of a process in `/proc`, to an open file, which may have no name any more.
    Open(PathBuf),
    /// The path, in a folder without links, of what is no link: something that is there, or may be made.
    Path(PathBuf),
}

/// Returns true if a path leads to an open file and not to a name: `/dev/stdin`, `/proc/self/fd/3`.
pub(crate) fn is_open_file(path: &Path) -> bool {
    matches!(follow(path), Ok(Target::Open(_)))
}

/// Follows the links at the end of a path, the last of which may lead to what is not there.
pub(crate) fn follow(path: &Path) -> io::Result<Target> {
    let mut path = path.to_owned();
    for _ in 0..MOST_LINKS {
        let Some(name) = path.file_name() else {
            return Ok(Target::Path(path));
        };
        let folder = real(folder(&path))?;
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
            return Ok(Target::Open(there));
        }
        path = folder.join(fs::read_link(&there)?);
    }
    Err(io::Error::from_raw_os_error(libc::ELOOP))
}

/// Returns a path without links to the same file.
///
/// # Errors
/// It cannot be followed, or the kernel follows it to another file: through `/proc/PID/root` into another mount
/// namespace, or from a working folder that something is mounted over.
pub(crate) fn real(path: &Path) -> io::Result<PathBuf> {
    let real = path.canonicalize()?;
    let inode = |path: &Path| fs::metadata(path).map(|file| (file.dev(), file.ino()));
    if inode(path)? == inode(&real)? {
        return Ok(real);
    }
    Err(io::Error::other(
        "the path leads to a file outside of this mount namespace; name a file inside of it",
    ))
}

/// Returns the folder that a path names its file in.
pub(crate) fn folder(path: &Path) -> &Path {
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
