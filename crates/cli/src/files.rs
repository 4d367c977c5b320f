//! The files that one policy is read from.
//!
//! Messages quote a policy's text, and a policy may come from a stranger. So a file is opened first and
//! looked at afterwards, by its handle and by the name that it has in the end: a link or a change in between
//! leads to nothing else. Texts that do not say `policy = 1` are never quoted: the parser sees to it.

use std::collections::HashMap;
use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, Read as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use msrgate_policy::{IncludeError, Includes, MAX_BYTES, Source, is_policy};

use crate::named::name;
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
    fn of(metadata: &Metadata, path: &Path) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            folder: path.parent().unwrap_or(path).to_owned(),
        }
    }
}

/// A regular file that was opened, as it was before anything was read from it.
#[derive(Clone, Debug)]
pub(crate) struct Opened {
    /// Its path without links.
    pub(crate) path: PathBuf,
    pub(crate) metadata: Metadata,
}

impl Opened {
    /// Returns the file that `argument` led to, or `None` for a pipe and the like, and for a file that has no name
    /// any more.
    fn of(argument: &Path, file: &File) -> Option<Self> {
        let metadata = file.metadata().ok().filter(Metadata::is_file)?;
        let path = argument.canonicalize().ok()?;
        // A link may lead elsewhere by now.
        let there = fs::symlink_metadata(&path).ok()?;
        let is_same = (there.dev(), there.ino()) == (metadata.dev(), metadata.ino());
        is_same.then_some(Self { path, metadata })
    }

    /// Returns true if `now` is of the same file, and nobody has written to it since.
    pub(crate) fn is_unchanged(&self, now: &Metadata) -> bool {
        let of = |one: &Metadata| {
            let modified = (one.mtime(), one.mtime_nsec());
            // Whoever sets the time of modification back cannot set this one.
            let changed = (one.ctime(), one.ctime_nsec());
            (one.dev(), one.ino(), one.len(), modified, changed)
        };
        of(&self.metadata) == of(now)
    }
}

/// The place that an input was read from.
#[derive(Debug)]
pub(crate) enum Place {
    StandardInput,
    Shipped(Shipped),
    File {
        /// The folder from which its includes are looked up: that of the real file, behind all links.
        folder: PathBuf,
        /// `None` for a pipe and the like.
        opened: Option<Opened>,
    },
}

impl Place {
    /// Returns the place of an argument's file, which is open.
    pub(crate) fn of_file(argument: &Path, file: &File) -> Self {
        let opened = Opened::of(argument, file);
        let path = opened.as_ref().map_or(argument, |opened| &opened.path);
        let folder = path.parent().unwrap_or(Path::new("")).to_owned();
        Self::File { folder, opened }
    }

    /// Returns the bytes that identify the text that was read from here.
    pub(crate) fn identity(&self) -> Vec<u8> {
        match self {
            Self::File {
                opened: Some(opened),
                ..
            } => opened.path.as_os_str().as_bytes().to_vec(),
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
        if let Place::File { folder, opened } = place {
            files
                .folders
                .insert(source.identity().into(), folder.clone());
            if let Some(Opened { path, metadata }) = opened {
                files.by_path.insert(path.clone(), source.clone());
                let id = FileId::of(metadata, path);
                files.by_id.insert(id, source.clone());
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
        let name = name(path);
        let mut bytes = Vec::new();
        let read = read_into(&mut bytes, file, self.left);
        // What was read counts, a policy or not; of a file that was too long one byte more than was left.
        self.left = self.left.saturating_sub(bytes.len());
        let text = read.and_then(|()| text_of(bytes));
        let text = text.map_err(IncludeError::new)?;
        Ok(Source::new(&name, &text).with_identity(path.as_os_str().as_bytes()))
    }
}

impl Includes for Files {
    fn open(&mut self, from: &Source, path: &str) -> Result<Source, IncludeError> {
        let folder = self.folders.get(from.identity());
        let file = folder.map_or_else(|| path.into(), |folder| folder.join(path));
        // A shipped policy means its like, whatever lies in the folder where the command is run.
        let is_shipped = |one: &Shipped| one.source().identity() == from.identity();
        // A link that leads nowhere is there, and does not mean a shipped policy.
        let is_there = fs::symlink_metadata(&file).is_ok();
        if (!is_there || SHIPPED.iter().any(is_shipped))
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
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(io::Error::other("not a regular file"));
    }
    Ok((file, FileId::of(&metadata, path)))
}

/// Turns bytes into a policy's text.
///
/// # Errors
/// They are no text: why, for a message that names the file.
fn text_of(bytes: Vec<u8>) -> Result<String, String> {
    text(&bytes)?;
    String::from_utf8(bytes).map_err(|error| error.to_string())
}

/// Reads at most `most` bytes, or says why there are none.
pub(crate) fn read_bytes(from: impl io::Read, most: usize) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    read_into(&mut bytes, from, most)?;
    Ok(bytes)
}

/// Adds what it reads to no bytes: all there is, at most `most`.
///
/// # Errors
/// There is more, of which one byte is read, or reading failed after the bytes that were added.
fn read_into(bytes: &mut Vec<u8>, from: impl io::Read, most: usize) -> Result<(), String> {
    // One byte more, so that a longer one is seen to be.
    let mut from = from.take(most as u64 + 1);
    from.read_to_end(bytes).map_err(|error| error.to_string())?;
    if bytes.len() > most {
        return Err(format!(
            "longer than the {MAX_BYTES} bytes that a policy may have with its includes; name ranges instead of single MSRs"
        ));
    }
    Ok(())
}

/// Bytes as a policy's text, or why they are none. Of what is no policy that tells nothing.
pub(crate) fn text(bytes: &[u8]) -> Result<&str, String> {
    std::str::from_utf8(bytes).map_err(|error| {
        let at = error.valid_up_to();
        let before = std::str::from_utf8(&bytes[..at]).unwrap_or_default();
        if is_policy(before) {
            format!("not UTF-8 text (byte {at}); a policy is a TOML file")
        } else {
            "this is not taken for a policy: it does not say `policy = 1`, and is not UTF-8 text"
                .to_owned()
        }
    })
}
