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

/// The environment variable with the file's path, by which the library finds it.
pub(super) const LIBRARY_VARIABLE: &str = "MSRGATE_STATE";

/// The environment variable with the folder for the file.
const VARIABLE: &str = "MSRGATE_STATE_DIR";

/// The file of a state page. The library finds it by its path, and the watcher removes it at the end.
#[derive(Debug)]
pub(super) struct StateFile {
    file: File,
    path: PathBuf,
}

impl StateFile {
    /// Makes the file and allocates all its bytes: if a disk were full later, the VMM would die of a page
    /// that has no room.
    ///
    /// # Errors
    /// No folder and no memory has room for the file.
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
            // AppArmor's profile for libvirt may allow no folder to write to.
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

    /// Makes the file in memory. The library finds it by a descriptor that the VMM inherits.
    fn in_memory(bytes: &[u8]) -> io::Result<Self> {
        let file = File::from(memfd_create("msrgate", MemfdFlags::empty())?);
        fill(&file, bytes)?;
        let path = format!("/proc/self/fd/{}", file.as_raw_fd()).into();
        Ok(Self { file, path })
    }

    /// The path by which the library finds the file.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Reads the file's present bytes.
    pub(super) fn bytes(&self) -> io::Result<Vec<u8>> {
        let size = self.file.metadata()?.len();
        let size = usize::try_from(size).unwrap_or(usize::MAX);
        let mut bytes = vec![0; size.min(msrgate_state::Layout::largest())];
        self.file.read_exact_at(&mut bytes, 0)?;
        Ok(bytes)
    }

    /// The open file.
    pub(super) const fn file(&self) -> &File {
        &self.file
    }

    /// Removes the file. Processes that have it open or mapped keep it.
    pub(super) fn remove(&self) {
        if !self.path.starts_with("/proc") {
            // Another process may have removed the file.
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn fill(file: &File, bytes: &[u8]) -> io::Result<()> {
    fallocate(file, FallocateFlags::empty(), 0, bytes.len() as u64)?;
    file.write_all_at(bytes, 0)
}
