//! The files that one policy is read from.
//!
//! Messages quote a policy's text, and a policy may come from a stranger. So a file is opened first and
//! looked at afterwards, by its handle and by the name that it has in the end: a link or a change in between
//! leads to nothing else. Texts that do not say `policy = 1` are never quoted: the parser sees to it.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Read as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use msrgate_policy::{IncludeError, Includes, MAX_BYTES, Source};

use crate::shipped::{SHIPPED, Shipped, shipped};

/// A file with the folder from which its includes are looked up: under a second name in the same
/// folder, a hard link, a file says the same; in another folder its includes may be other files.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct FileId {
    device: u64,
    inode: u64,
    folder: PathBuf,
}

impl FileId {
    /// The opened file that `path`, without links, led to.
    pub(crate) fn of(file: &File, path: &Path) -> io::Result<Self> {
        let metadata = file.metadata()?;
        Ok(Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            folder: path.parent().unwrap_or(path).to_owned(),
        })
    }
}

/// The place that an input was read from.
#[derive(Debug)]
pub(crate) enum Place {
    StandardInput,
    Shipped(Shipped),
    File {
        /// The folder as it was typed.
        folder: PathBuf,
        /// Its path without links, unless it is a pipe or the like.
        real: Option<(PathBuf, FileId)>,
    },
}

impl Place {
    /// Returns the place of an argument's file, which is open.
    pub(crate) fn of_file(argument: &Path, file: &File) -> Self {
        let folder = argument.parent().unwrap_or(Path::new("")).to_owned();
        let real = argument.canonicalize().ok();
        let real = real.and_then(|real| Some((FileId::of(file, &real).ok()?, real)));
        let is_regular = file.metadata().is_ok_and(|metadata| metadata.is_file());
        let real = real.filter(|_| is_regular).map(|(id, real)| (real, id));
        Self::File { folder, real }
    }

    /// Returns the bytes that identify the text that was read from here.
    pub(crate) fn identity(&self) -> Vec<u8> {
        match self {
            Self::File {
                real: Some((real, _)),
                ..
            } => real.as_os_str().as_bytes().to_vec(),
            // No path without links begins so.
            Self::File { .. } => b"an opened file".to_vec(),
            Self::StandardInput => b"standard input".to_vec(),
            Self::Shipped(shipped) => shipped.source().identity().to_vec(),
        }
    }
}

/// The files of one policy, each of which is opened and read once, whatever names lead to it.
///
/// Policies include files by a path from the folder of the including one, and shipped policies by
/// name.
pub(crate) struct Files {
    by_path: HashMap<PathBuf, Source>,
    by_id: HashMap<FileId, Source>,
    /// By identity of a text, the folder from which its includes are looked up.
    folders: HashMap<Box<[u8]>, PathBuf>,
    /// The bytes that may still be read.
    left: usize,
}

impl Files {
    /// The files of the policy that was read from `place`.
    pub(crate) fn from(source: &Source, place: &Place) -> Self {
        let mut files = Self {
            by_path: HashMap::new(),
            by_id: HashMap::new(),
            folders: HashMap::new(),
            left: MAX_BYTES.saturating_sub(source.text().len()),
        };
        if let Place::File { folder, real } = place {
            files
                .folders
                .insert(source.identity().into(), folder.clone());
            if let Some((path, id)) = real {
                files.by_path.insert(path.clone(), source.clone());
                files.by_id.insert(id.clone(), source.clone());
            }
        }
        files
    }

    /// The file at a path that is free of links, unless it was read before.
    fn file(&mut self, path: PathBuf) -> Result<Source, IncludeError> {
        if let Some(source) = self.by_path.get(&path) {
            return Ok(source.clone());
        }
        is_called_toml(&path)?;
        let (file, id) = open(&path).map_err(|error| failed(&error))?;
        let source = match self.by_id.get(&id) {
            Some(source) => source.clone(),
            None => self.read(&path, file)?,
        };
        self.folders
            .entry(source.identity().into())
            .or_insert_with(|| id.folder.clone());
        self.by_id.insert(id, source.clone());
        self.by_path.insert(path, source.clone());
        Ok(source)
    }

    fn read(&mut self, path: &Path, file: File) -> Result<Source, IncludeError> {
        let name = path.display().to_string();
        // What was too long once is not read again and again.
        let left = std::mem::take(&mut self.left);
        let text = read_text(file, left).map_err(IncludeError::new)?;
        self.left = left - text.len();
        Ok(Source::new(&name, &text).with_identity(path.as_os_str().as_bytes()))
    }
}

impl Includes for Files {
    fn open(&mut self, from: &Source, path: &str) -> Result<Source, IncludeError> {
        let folder = self.folders.get(from.identity());
        let file = folder.map_or_else(|| path.into(), |folder| folder.join(path));
        // A shipped policy means its like, whatever lies in the folder where the command is run.
        let is_shipped = |one: &Shipped| one.source().identity() == from.identity();
        if (!file.exists() || SHIPPED.iter().any(is_shipped))
            && let Some(shipped) = shipped(path)
        {
            return Ok(shipped.source());
        }
        is_called_toml(Path::new(path))?;
        self.file(file.canonicalize().map_err(|error| failed(&error))?)
    }
}

fn is_called_toml(path: &Path) -> Result<(), IncludeError> {
    if path
        .extension()
        .is_some_and(|extension| extension == "toml")
    {
        return Ok(());
    }
    Err(IncludeError::new(
        "an included policy is called NAME.toml, and so is what a link of that name leads to",
    ))
}

fn failed(error: &io::Error) -> IncludeError {
    IncludeError::new(error.to_string())
}

/// Opens a regular file. Opening anything else, such as a pipe without a writer, does not wait.
fn open(path: &Path) -> io::Result<(File, FileId)> {
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOFOLLOW | libc::O_NOCTTY)
        .open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("not a regular file"));
    }
    let id = FileId::of(&file, path)?;
    Ok((file, id))
}

/// Reads at most `most` bytes of text.
///
/// # Errors
/// It is longer, or no text, or cannot be read: why, for a message that names it.
fn read_text(from: impl io::Read, most: usize) -> Result<String, String> {
    let bytes = read_bytes(from, most)?;
    text(&bytes)?;
    String::from_utf8(bytes).map_err(|error| error.to_string())
}

/// Reads at most `most` bytes, or says why there are none.
pub(crate) fn read_bytes(from: impl io::Read, most: usize) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    // One byte more, so that a longer one is seen to be.
    let mut from = from.take(most as u64 + 1);
    from.read_to_end(&mut bytes)
        .map_err(|error| error.to_string())?;
    if bytes.len() > most {
        return Err(format!(
            "longer than the {MAX_BYTES} bytes that a policy may have with its includes; name ranges instead of single MSRs"
        ));
    }
    Ok(bytes)
}

/// Bytes as a policy's text, or why they are none.
pub(crate) fn text(bytes: &[u8]) -> Result<&str, String> {
    std::str::from_utf8(bytes).map_err(|error| {
        let at = error.valid_up_to();
        format!("not UTF-8 text (byte {at}); a policy is a TOML file")
    })
}
