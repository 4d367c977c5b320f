//! The file of the run's state page.

use std::env;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use msrgate_state::NewRun;
use rustix::fs::{FallocateFlags, MemfdFlags, fallocate, memfd_create};

use crate::failure::Failure;

/// The variable by which the library finds the file.
pub(super) const LIBRARY_VARIABLE: &str = "MSRGATE_STATE";

/// The variable that names a folder for the file.
const VARIABLE: &str = "MSRGATE_STATE_DIR";

/// A file that the library finds by a path, and that the watcher takes away at the end.
#[derive(Debug)]
pub(super) struct StateFile {
    file: File,
    path: PathBuf,
}

impl StateFile {
    /// Makes it, with all its bytes allocated: the VMM must not die of a page that a full disk has no room for.
    ///
    /// # Errors
    /// There is no place for it.
    pub(super) fn new(run: &NewRun<'_>) -> Result<Self, Failure> {
        let bytes = run.encode();
        let failed = |what: &Path, error: &io::Error| Failure::Input {
            what: crate::named::name(what),
            why: format!(
                "no room for the run's state page of {} bytes: {error}",
                bytes.len()
            ),
        };
        if let Some(folder) = env::var_os(VARIABLE).map(PathBuf::from) {
            return Self::in_folder(&folder, &bytes).map_err(|error| failed(&folder, &error));
        }
        let own = env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
        let mut folders = own.into_iter().chain([PathBuf::from("/dev/shm")]);
        let in_folder = folders.find_map(|folder| Self::in_folder(&folder, &bytes).ok());
        match in_folder {
            Some(state) => Ok(state),
            // Under AppArmor's profile for libvirt there may be no folder to write to.
            None => Self::in_memory(&bytes).map_err(|error| failed(Path::new("memory"), &error)),
        }
    }

    fn in_folder(folder: &Path, bytes: &[u8]) -> io::Result<Self> {
        let file = tempfile::Builder::new()
            .prefix("msrgate-")
            .tempfile_in(folder)?;
        fill(file.as_file(), bytes)?;
        let (file, path) = file.keep().map_err(|kept| kept.error)?;
        Ok(Self { file, path })
    }

    /// Without a folder: by a descriptor that the VMM inherits.
    fn in_memory(bytes: &[u8]) -> io::Result<Self> {
        let file = File::from(memfd_create("msrgate", MemfdFlags::empty())?);
        fill(&file, bytes)?;
        let path = format!("/proc/self/fd/{}", file.as_raw_fd()).into();
        Ok(Self { file, path })
    }

    /// Where the library finds it.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Its bytes as they are now.
    pub(super) fn bytes(&self) -> io::Result<Vec<u8>> {
        let size = self.file.metadata()?.len();
        let size = usize::try_from(size).unwrap_or(usize::MAX);
        let mut bytes = vec![0; size.min(msrgate_state::Layout::largest())];
        self.file.read_exact_at(&mut bytes, 0)?;
        Ok(bytes)
    }

    /// The descriptor.
    pub(super) const fn file(&self) -> &File {
        &self.file
    }

    /// Takes it away. Processes that have it keep it.
    pub(super) fn remove(&self) {
        if !self.path.starts_with("/proc") {
            // Somebody else may have done so.
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn fill(file: &File, bytes: &[u8]) -> io::Result<()> {
    fallocate(file, FallocateFlags::empty(), 0, bytes.len() as u64)?;
    file.write_all_at(bytes, 0)
}
