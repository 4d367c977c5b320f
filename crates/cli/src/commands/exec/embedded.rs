//! Makes a file from the preload library that is embedded in the command, so that the dynamic linker can
//! load it.

use std::env;
use std::fs::{self, DirBuilder, File};
use std::hash::{DefaultHasher, Hasher as _};
use std::io::{self, Write as _};
use std::os::fd::{AsRawFd as _, IntoRawFd as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{MemfdFlags, memfd_create};

use super::{loadable, process};

/// The bytes of the preload library that `MSRGATE_PRELOAD_FILE` named when the command was built; empty if
/// the variable was not set.
const LIBRARY: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/preload.so"));

/// Returns the path of a copy of the embedded library, or `None` if the command has no embedded library.
///
/// # Errors
/// Neither a folder nor memory has room for the copy.
pub(super) fn find() -> Option<io::Result<PathBuf>> {
    (!LIBRARY.is_empty()).then(|| placed(LIBRARY, folders()))
}

/// Returns the folders in which the folder for the library's copy may be made, in order of preference.
fn folders() -> impl Iterator<Item = PathBuf> {
    let named = |variable| env::var_os(variable).filter(|path| !path.is_empty());
    let cache = named("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .or_else(|| Some(PathBuf::from(named("HOME")?).join(".cache")));
    let run = named("XDG_RUNTIME_DIR").map(PathBuf::from);
    run.into_iter()
        .chain(cache)
        .chain(["/run", "/var/cache"].map(PathBuf::from))
        .filter(|folder| folder.is_absolute())
}

/// Writes the bytes into a file in the first folder where this works, or else into a file in memory.
fn placed(bytes: &[u8], folders: impl Iterator<Item = PathBuf>) -> io::Result<PathBuf> {
    let in_folder = folders
        .map(|folder| in_folder(bytes, &folder.join("msrgate")))
        .find_map(Result::ok);
    in_folder.map_or_else(|| in_memory(bytes), Ok)
}

/// Writes the bytes into a file in a subfolder that only this user can write. If the file of an earlier run
/// is there, the function uses it again.
fn in_folder(bytes: &[u8], folder: &Path) -> io::Result<PathBuf> {
    // If the folder is there, it is looked at.
    let _ = DirBuilder::new().mode(0o700).create(folder);
    if !is_own(folder)? || loadable::refusal(folder).is_some() {
        return Err(io::ErrorKind::PermissionDenied.into());
    }
    let mut hasher = DefaultHasher::new();
    hasher.write(bytes);
    let path = folder.join(format!("libmsrgate_preload-{:016x}.so", hasher.finish()));
    if fs::read(&path).is_ok_and(|there| there == bytes) {
        return Ok(path);
    }
    let mut file = tempfile::Builder::new()
        .permissions(fs::Permissions::from_mode(0o755))
        .tempfile_in(folder)?;
    file.write_all(bytes)?;
    file.persist(&path).map_err(|error| error.error)?;
    Ok(path)
}

/// Returns true if the path is a folder that only this user can write, and not a symbolic link.
fn is_own(folder: &Path) -> io::Result<bool> {
    let there = fs::symlink_metadata(folder)?;
    let own = rustix::process::geteuid().as_raw();
    Ok(there.is_dir() && there.uid() == own && there.mode() & 0o022 == 0)
}

/// Writes the bytes into a file in memory, which has no name. The VMM inherits a descriptor of the file, by
/// which each process of the run finds it.
fn in_memory(bytes: &[u8]) -> io::Result<PathBuf> {
    let name = "libmsrgate_preload.so";
    // Kernels before 6.3 do not know the flag, and those since may be told to want it.
    let made = memfd_create(name, MemfdFlags::EXEC)
        .or_else(|_| memfd_create(name, MemfdFlags::empty()))?;
    let mut file = File::from(made);
    file.write_all(bytes)?;
    let inherited = process::inherited(&file)?;
    let path = format!("/proc/self/fd/{}", inherited.as_raw_fd());
    // The descriptor stays open until the VMM's end.
    let _ = inherited.into_raw_fd();
    Ok(path.into())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn copy_of_library_is_in_folder_of_the_user_and_is_used_again_by_next_run() {
        let base = tempfile::tempdir().unwrap();
        let folders = || [PathBuf::from("/nonexistent"), base.path().to_owned()].into_iter();
        let first = placed(b"library", folders()).unwrap();
        assert!(first.starts_with(base.path().join("msrgate")), "{first:?}");
        assert_eq!(fs::read(&first).unwrap(), b"library");
        let inode = fs::metadata(&first).unwrap().ino();
        assert_eq!(placed(b"library", folders()).unwrap(), first);
        assert_eq!(fs::metadata(&first).unwrap().ino(), inode);
        // A file that is not the library is replaced.
        fs::write(&first, b"other").unwrap();
        assert_eq!(placed(b"library", folders()).unwrap(), first);
        assert_eq!(fs::read(&first).unwrap(), b"library");
    }

    #[test]
    fn library_is_not_copied_into_folder_that_others_can_write_nor_into_symbolic_link() {
        let base = tempfile::tempdir().unwrap();
        let folder = base.path().join("msrgate");
        let in_memory = || {
            let path = placed(b"library", [base.path().to_owned()].into_iter()).unwrap();
            assert_eq!(fs::read(&path).unwrap(), b"library");
            path.starts_with("/proc/self/fd")
        };
        fs::create_dir(&folder).unwrap();
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o777)).unwrap();
        assert!(in_memory());
        fs::remove_dir(&folder).unwrap();
        symlink(base.path(), &folder).unwrap();
        assert!(in_memory());
        fs::remove_file(&folder).unwrap();
        fs::create_dir(base.path().join("a b")).unwrap();
        let odd = placed(b"library", [base.path().join("a b")].into_iter()).unwrap();
        assert!(odd.starts_with("/proc/self/fd"), "{odd:?}");
    }
}
