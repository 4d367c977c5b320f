//! The search for the file to which a path leads when its last component is a symbolic link.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

/// The largest number of symbolic links that are followed one after another. The kernel has the same limit.
const MOST_LINKS: usize = 40;

/// The file to which a path leads through symbolic links.
pub(crate) enum Target {
    /// The path of a symbolic link in a folder of `/proc/PID`, such as `/proc/7/fd/3`. The link leads to an
    /// open file, which may have no name any more.
    Open(PathBuf),
    /// A path that is not a symbolic link, in a folder whose path has no symbolic links. The file at the
    /// path exists, or can be made there.
    Path(PathBuf),
}

/// Returns true if a path leads to a file that a process has opened, and not to the name of a file.
/// Examples are `/dev/stdin` and `/proc/self/fd/3`.
pub(crate) fn is_open_file(path: &Path) -> bool {
    matches!(follow(path), Ok(Target::Open(_)))
}

/// Follows the symbolic links at the end of a path. The last link may lead to a file that does not exist.
pub(crate) fn follow(path: &Path) -> io::Result<Target> {
    let mut path = path.to_owned();
    for _ in 0..MOST_LINKS {
        let Some(name) = path.file_name() else {
            return Ok(Target::Path(path));
        };
        let folder = real(folder(&path))?;
        let there = folder.join(name);
        // The function looks at `path` and not at `there`, because a `/` at the end of `path` means a
        // folder.
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

/// Returns the folder that is missing where a path leads through the symbolic links at its end, so that no file can
/// be made there; `None` if no folder is missing.
pub(crate) fn missing_folder(path: &Path) -> Option<PathBuf> {
    let mut path = path.to_owned();
    for _ in 0..MOST_LINKS {
        let folder = folder(&path);
        if !folder.is_dir() {
            return Some(folder.to_owned());
        }
        let target = fs::read_link(&path).ok()?;
        path = path.with_file_name("").join(target);
    }
    None
}

/// Returns a path that has no symbolic links and leads to the same file as `path`.
///
/// # Errors
/// The path cannot be followed, or no path without links leads to the file. The latter happens if the path
/// goes through `/proc/PID/root` into another mount namespace, or if something is mounted over the working
/// folder.
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

/// Returns the folder part of a path, which is `.` for a bare file name.
pub(crate) fn folder(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if folder != Path::new("") => folder,
        _ => Path::new("."),
    }
}

/// Returns true for a folder within `/proc/PID`. The symbolic links in such a folder lead to open files, and
/// not to file names.
fn is_of_a_process(folder: &Path) -> bool {
    let inside = folder.strip_prefix("/proc").ok();
    let first = inside.and_then(|inside| inside.iter().next()?.to_str());
    first.is_some_and(|first| first.parse::<u32>().is_ok())
}
