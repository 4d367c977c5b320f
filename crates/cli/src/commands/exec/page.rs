//! The file of the run's state page.

use std::env;
use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use msrgate_state::NewRun;
use rustix::fs::{FallocateFlags, MemfdFlags, fallocate, memfd_create};
use rustix::process::{Resource, getrlimit};

use super::lease::{self, Others};
use super::process;
use crate::failure::Failure;

/// The environment variable by which the command tells the library the path of the state page's file.
pub(super) const LIBRARY_VARIABLE: &str = "MSRGATE_STATE";

/// The environment variable by which a user may choose the folder of the state page's file.
const VARIABLE: &str = "MSRGATE_STATE_DIR";

/// The number of bytes that one write call puts into the state page's file.
const PART: usize = 4096;

/// The beginning of the name of each state page's file.
const PREFIX: &str = "msrgate-";

/// The file of a run's state page. The library finds the file by its path, and the watcher removes the file
/// at the end of the run.
#[derive(Debug)]
pub(super) struct StateFile {
    file: File,
    path: PathBuf,
    /// The descriptor of a file in memory, which the VMM inherits; `None` if the file has a name.
    _inherited: Option<OwnedFd>,
}

impl StateFile {
    /// Makes the state page's file, and allocates space for all its bytes. Without the space, a disk that
    /// becomes full would kill the VMM by SIGBUS.
    ///
    /// # Errors
    /// Neither a folder nor memory has room for the file.
    pub(super) fn new(run: &NewRun<'_>) -> Result<Self, Failure> {
        let bytes = run.encode();
        let failed = |what: &Path, error: &io::Error| Failure::Input {
            what: crate::named::name(what),
            why: match error.kind() {
                ErrorKind::StorageFull
                | ErrorKind::QuotaExceeded
                | ErrorKind::FileTooLarge
                | ErrorKind::OutOfMemory => format!(
                    "no room for the run's state page of {} bytes: {error}",
                    bytes.len()
                ),
                _ => {
                    // The error of a temporary file ends with its path.
                    let why = error.to_string();
                    let why = why.split(" at path ").next().unwrap_or_default();
                    format!("the run's state page cannot be made there: {why}")
                }
            },
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

    pub(super) fn in_folder(folder: &Path, bytes: &[u8]) -> io::Result<Self> {
        let file = tempfile::Builder::new()
            .prefix(PREFIX)
            .tempfile_in(folder)?;
        // The umask may have taken the owner's rights away, which the library needs.
        file.as_file()
            .set_permissions(fs::Permissions::from_mode(0o600))?;
        fill(file.as_file(), bytes)?;
        let (file, path) = file.keep().map_err(|kept| kept.error)?;
        Ok(Self {
            file,
            path,
            _inherited: None,
        })
    }

    /// Makes the state page's file in memory. The library finds the file by a descriptor that the VMM
    /// inherits.
    fn in_memory(bytes: &[u8]) -> io::Result<Self> {
        let file = File::from(memfd_create("msrgate", MemfdFlags::empty())?);
        fill(&file, bytes)?;
        let inherited = process::inherited(&file)?;
        let path = PathBuf::from(format!("/proc/self/fd/{}", inherited.as_raw_fd()));
        // The kernel counts writers by descriptions that were opened, which the one of a memfd was not.
        let file = File::options().read(true).write(true).open(&path)?;
        Ok(Self {
            file,
            path,
            _inherited: Some(inherited),
        })
    }

    /// The path by which the library finds the state page's file.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Reads the present bytes of the state page's file.
    pub(super) fn bytes(&self) -> io::Result<Vec<u8>> {
        let size = self.file.metadata()?.len();
        let size = usize::try_from(size).unwrap_or(usize::MAX);
        let mut bytes = vec![0; size.min(msrgate_state::Layout::largest())];
        self.file.read_exact_at(&mut bytes, 0)?;
        Ok(bytes)
    }

    /// The open file of the state page.
    pub(super) const fn file(&self) -> &File {
        &self.file
    }

    /// Returns true if another process has the state page mapped: a process of the run that has loaded the
    /// library. Returns false if the file system cannot tell.
    pub(super) fn has_others(&self) -> bool {
        lease::others(&self.file) == Others::Some
    }

    /// Removes state pages that earlier runs left because their watchers were killed: all in the same folder
    /// that no process has open or mapped.
    pub(super) fn remove_litter(&self) {
        let folder = self.path.parent().filter(|_| self.has_name());
        let entries = folder.and_then(|folder| fs::read_dir(folder).ok());
        for entry in entries.into_iter().flatten().flatten() {
            let is_ours = entry.file_name().as_bytes().starts_with(PREFIX.as_bytes());
            if is_ours && is_litter(&entry.path()) {
                let _ = fs::remove_file(entry.path());
            }
        }
    }

    fn has_name(&self) -> bool {
        !self.path.starts_with("/proc")
    }

    /// Removes the name of the state page's file. Processes that have the file open or mapped can go on
    /// using it.
    pub(super) fn remove(&self) {
        if self.has_name() {
            // Another process may have removed the file.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Returns true if a file is a state page that belongs to this user and that no process uses.
fn is_litter(path: &Path) -> bool {
    let mut options = File::options();
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
    options.read(true).write(true).custom_flags(flags);
    let Ok(file) = options.open(path) else {
        return false;
    };
    let own = rustix::process::geteuid().as_raw();
    let is_own = file
        .metadata()
        .is_ok_and(|file| file.is_file() && file.uid() == own);
    let mut begin = [0; msrgate_state::MAGIC.len()];
    is_own
        && file.read_exact_at(&mut begin, 0).is_ok()
        && begin == *msrgate_state::MAGIC
        && lease::others(&file) == Others::None
}

fn fill(file: &File, bytes: &[u8]) -> io::Result<()> {
    // The kernel would end this process by SIGXFSZ.
    let limit = getrlimit(Resource::Fsize).current;
    if limit.is_some_and(|limit| limit < bytes.len() as u64) {
        return Err(io::Error::from_raw_os_error(libc::EFBIG));
    }
    fallocate(file, FallocateFlags::empty(), 0, bytes.len() as u64)?;
    // The rest is zeros already.
    for (number, part) in (0..).zip(bytes.chunks(PART)) {
        if part.iter().any(|byte| *byte != 0) {
            file.write_all_at(part, number * PART as u64)?;
        }
    }
    Ok(())
}
