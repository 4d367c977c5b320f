//! The files that one policy is read from.
//!
//! Messages quote the text of a policy. A stranger may write a policy that includes a secret file of the
//! user, and then read the messages. Three rules keep the secret:
//!
//! - A file is opened first and checked afterwards, by its handle and by its path without links. So neither
//!   a link nor a change in between can lead to another file.
//! - The parser never quotes a text that does not say `policy = 1`.
//! - The command reads only the head of such a text, so that no message depends on the text's length.

use std::collections::{HashMap, HashSet};
use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use msrgate_policy::{
    HEAD_BYTES, IncludeError, Includes, MAX_BYTES, Program, Source, head_of, is_policy, shown_name,
};

use crate::access::Access;
use crate::links;
use crate::missing;
use crate::named::name;
use crate::shipped::{SHIPPED, Shipped, shipped};

/// The identity of a file in the kernel, which is the same under all names of the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Inode {
    device: u64,
    number: u64,
}

impl Inode {
    fn of(metadata: &Metadata) -> Self {
        Self {
            device: metadata.dev(),
            number: metadata.ino(),
        }
    }

    /// Returns the inode of an open file, or `None` if it is no regular file.
    pub(crate) fn of_open(file: &File) -> Option<Self> {
        let metadata = file.metadata().ok().filter(Metadata::is_file)?;
        Some(Self::of(&metadata))
    }

    /// Returns the inode of the file to which `path` leads through all symbolic links, including links to
    /// open files in `/proc`.
    pub(crate) fn behind(path: &Path) -> Option<Self> {
        let metadata = fs::metadata(path).ok().filter(Metadata::is_file)?;
        Some(Self::of(&metadata))
    }
}

/// The identity of a policy's file: its inode, and the folder from which its includes are looked up. Two
/// hard links to a file are one policy if they are in one folder. In another folder, the includes of a hard
/// link may be other files.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct FileId {
    inode: Inode,
    folder: PathBuf,
}

impl FileId {
    /// Returns the identity of an opened file, whose `path` has no symbolic links.
    fn of(metadata: &Metadata, path: &Path) -> Self {
        Self {
            inode: Inode::of(metadata),
            folder: path.parent().unwrap_or(path).to_owned(),
        }
    }
}

/// A regular file that was opened, with its metadata from before any byte was read.
#[derive(Debug)]
pub(crate) struct Opened {
    /// The path of the opened file, without symbolic links.
    pub(crate) path: PathBuf,
    pub(crate) metadata: Metadata,
    /// The file's access rights. A new file that replaces this file gets the same rights.
    pub(crate) access: io::Result<Access>,
}

impl Opened {
    /// Returns the record of the opened file `file`, to which the path `argument` led. Returns `None` if the
    /// file is not a regular file, or has no name.
    fn of(argument: &Path, file: &File) -> Option<Self> {
        let metadata = file.metadata().ok().filter(Metadata::is_file)?;
        let path = argument.canonicalize().ok()?;
        // The path may lead to another file now than when the file was opened.
        let there = fs::symlink_metadata(&path).ok()?;
        let is_same = Inode::of(&there) == Inode::of(&metadata);
        is_same.then(|| Self {
            path,
            access: Access::of_open(file, &metadata),
            metadata,
        })
    }

    /// Returns true if `now` is the metadata of the same file, and no process has written to the
    /// file since it was opened.
    pub(crate) fn is_unchanged(&self, now: &Metadata) -> bool {
        let of = |one: &Metadata| {
            let modified = (one.mtime(), one.mtime_nsec());
            // A process that sets the time of modification back cannot set the time of change.
            let changed = (one.ctime(), one.ctime_nsec());
            (Inode::of(one), one.len(), modified, changed)
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
        /// The folder from which the input's includes are looked up: the folder of the file to which all
        /// symbolic links lead. For an input without a file name, such as a pipe at `/dev/stdin`, it is the
        /// working folder.
        folder: PathBuf,
        /// The regular file that was read, or `None` if the input was a pipe or the like.
        opened: Option<Box<Opened>>,
    },
}

impl Place {
    /// Returns the place of the input that the argument `argument` names and that was opened as `file`.
    pub(crate) fn of_file(argument: &Path, file: &File) -> Self {
        let opened = Opened::of(argument, file).map(Box::new);
        let path = match &opened {
            Some(opened) => &opened.path,
            None if links::is_open_file(argument) => Path::new(""),
            None => argument,
        };
        let folder = path.parent().unwrap_or(Path::new("")).to_owned();
        Self::File { folder, opened }
    }

    /// Returns bytes that stand for the place from which a text was read: for a regular file, its path
    /// without symbolic links.
    pub(crate) fn identity(&self) -> Vec<u8> {
        match self {
            Self::File {
                opened: Some(opened),
                ..
            } => opened.path.as_os_str().as_bytes().to_vec(),
            // No path without links is equal to this text, because such a path begins with `/`.
            Self::File { .. } => b"an opened file".to_vec(),
            Self::StandardInput => b"standard input".to_vec(),
            Self::Shipped(shipped) => shipped.source().identity().to_vec(),
        }
    }
}

/// The files of one policy. Each file is opened and read once, even if it is included under several names.
///
/// A policy includes another file by a path from the folder of the including file, and a shipped policy by
/// its name.
pub(crate) struct Files {
    /// The texts of the files, by path. A file that could not be read is not tried again.
    by_path: HashMap<PathBuf, Result<Source, IncludeError>>,
    by_id: HashMap<FileId, Source>,
    /// The folder from which a text's includes are looked up, by the identity of the text.
    folders: HashMap<Box<[u8]>, PathBuf>,
    /// The number of bytes that the files still to be read may have together.
    left: usize,
}

impl Files {
    /// Returns the files of the policy `source`, which was read from `place`. No included file has been read
    /// yet.
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
            if let Some(opened) = opened {
                let path = &opened.path;
                files.by_path.insert(path.clone(), Ok(source.clone()));
                let id = FileId::of(&opened.metadata, path);
                files.by_id.insert(id, source.clone());
            }
        }
        files
    }

    /// Returns the inodes of all regular files that were read.
    pub(crate) fn inodes(self) -> HashSet<Inode> {
        self.by_id.into_keys().map(|id| id.inode).collect()
    }

    /// Reads the file at a path without symbolic links, unless the file was read before.
    fn file(&mut self, path: PathBuf) -> Result<Source, IncludeError> {
        if let Some(known) = self.by_path.get(&path) {
            return known.clone();
        }
        is_called_toml(&path)?;
        let (file, id) = open(&path).map_err(|error| failed(&error))?;
        let read = match self.by_id.get(&id) {
            Some(source) => Ok(source.clone()),
            None => self.read(&path, file),
        };
        if let Ok(source) = &read {
            self.folders
                .entry(source.identity().into())
                .or_insert_with(|| id.folder.clone());
            self.by_id.insert(id, source.clone());
        }
        self.by_path.insert(path, read.clone());
        read
    }

    fn read(&mut self, path: &Path, file: File) -> Result<Source, IncludeError> {
        let text = match read_text(file, self.left).map_err(|error| failed(&error))? {
            Text::Policy(bytes) => {
                self.left -= bytes.len();
                text_of(bytes).map_err(IncludeError::new)?
            }
            Text::TooLong => {
                self.left = 0;
                return Err(IncludeError::new(too_long()));
            }
            // A text that is no policy does not count towards the limit: otherwise the bytes that are left
            // would tell the text's length.
            Text::Head(text) => text,
        };
        Ok(Source::new(&name(path), &text).with_identity(path.as_os_str().as_bytes()))
    }
}

impl Includes for Files {
    fn open(&mut self, from: &Source, path: &str) -> Result<Source, IncludeError> {
        let folder = self.folders.get(from.identity());
        let file = folder.map_or_else(|| path.into(), |folder| folder.join(path));
        // An include in a shipped policy means a shipped policy, whatever files the working folder has.
        let is_shipped = |one: &Shipped| one.source().identity() == from.identity();
        // If a dangling link has this name, the name means the link, and not a shipped policy.
        let is_there = fs::symlink_metadata(&file).is_ok();
        if (!is_there || SHIPPED.iter().any(is_shipped))
            && let Some(shipped) = shipped(path)
        {
            return Ok(shipped.source());
        }
        let folder = folder.map_or_else(PathBuf::new, Clone::clone);
        if is_called_toml(Path::new(path)).is_err() {
            return Err(unnamed(path, &file));
        }
        match links::real(&file) {
            Ok(file) => self.file(file),
            Err(error) => Err(unfound(path, &folder, &error)),
        }
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
        "the link points to a file whose name does not end in `.toml`",
    ))
}

/// Returns the error for an `include` whose text is neither the name of a shipped policy nor looks like a
/// file's name. The error tells nothing about the content of a file with this name.
fn unnamed(path: &str, file: &Path) -> IncludeError {
    if shipped(path).is_some() {
        let why = "a file or folder of this name hides the shipped policy";
        let help = format!("rename it, or include a copy: `msrgate policies {path} > {path}.toml`");
        return IncludeError::new(why).with_help(help);
    }
    let why =
        "no shipped policy has this name, and the name of an included file must end in `.toml`";
    let toml = format!("{path}.toml");
    let help = if file
        .with_file_name(Path::new(&toml).file_name().unwrap_or_default())
        .is_file()
    {
        format!("did you mean \"{}\"?", shown_name(&toml))
    } else if let Some(meant) = missing::meant(path) {
        format!("did you mean \"{meant}\"?")
    } else {
        let names: Vec<_> = SHIPPED.iter().map(|shipped| shipped.name).collect();
        format!("the shipped policies are {}", names.join(", "))
    };
    IncludeError::new(why).with_help(help)
}

/// Returns the error for an included file that cannot be read. The error names the folder in which the file
/// was looked for.
fn unfound(path: &str, folder: &Path, error: &io::Error) -> IncludeError {
    if error.kind() != io::ErrorKind::NotFound {
        return failed(error);
    }
    let error = if Path::new(path).is_absolute() {
        IncludeError::new("there is no such file")
    } else {
        let folder = missing::folder(folder);
        IncludeError::new(if path.contains('/') {
            format!("there is no such file; an included path starts from {folder}")
        } else {
            format!("there is no such file in {folder}")
        })
    };
    match missing::meant(path) {
        Some(meant) => error.with_help(format!("did you mean the shipped policy \"{meant}\"?")),
        None => {
            error.with_help("write the path relative to the folder of the file that includes it")
        }
    }
}

fn failed(error: &io::Error) -> IncludeError {
    IncludeError::new(missing::reason(error))
}

/// Opens a regular file. For a pipe or a device the function returns an error at once, and does not wait for
/// another process to open the pipe.
fn open(path: &Path) -> io::Result<(File, FileId)> {
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOFOLLOW | libc::O_NOCTTY)
        .open(path)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(io::Error::other("it is not a regular file"));
    }
    Ok((file, FileId::of(&metadata, path)))
}

/// The part of an input that [`read_text`] has read.
enum Text {
    /// The whole text of a policy.
    Policy(Vec<u8>),
    /// A policy that is longer than allowed.
    TooLong,
    /// The head of a text that is no policy, up to the first bytes that are not UTF-8. The parser needs only
    /// the head to refuse the text.
    Head(String),
}

/// Reads a policy of at most `most` bytes, or only the head of a text that is no policy.
fn read_text(mut from: impl Read, most: usize) -> io::Result<Text> {
    let mut bytes = Vec::new();
    read_to(&mut bytes, from.by_ref(), HEAD_BYTES)?;
    if !is_policy_so_far(&bytes) {
        return Ok(Text::Head(text_before_others(head_of(&bytes)).to_owned()));
    }
    read_to(&mut bytes, from, most)?;
    Ok(if bytes.len() > most {
        Text::TooLong
    } else {
        Text::Policy(bytes)
    })
}

/// Returns true if these bytes begin like a policy: the text before the first bytes that are not UTF-8 says
/// `policy = 1`.
fn is_policy_so_far(bytes: &[u8]) -> bool {
    is_policy(text_before_others(head_of(bytes)))
}

/// Returns the text before the first bytes that are not UTF-8.
fn text_before_others(bytes: &[u8]) -> &str {
    let first = bytes.utf8_chunks().next();
    first.map_or("", |chunk| chunk.valid())
}

/// Turns bytes into a policy's text.
///
/// # Errors
/// The bytes are not UTF-8. The error is the reason, for a message that names the file.
fn text_of(bytes: Vec<u8>) -> Result<String, String> {
    text(&bytes)?;
    String::from_utf8(bytes).map_err(|error| error.to_string())
}

/// Reads an argument of at most [`MAX_BYTES`]. For a longer file that is neither a policy nor a program, the
/// function returns only the head of the file, which is enough to see that it is neither.
///
/// # Errors
/// The argument cannot be read, or is a policy or a program that is too long. The error is the reason, for a
/// message that names the argument.
pub(crate) fn read_bytes(from: impl Read) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    read_to(&mut bytes, from, MAX_BYTES).map_err(|error| missing::reason(&error))?;
    match bytes.len() > MAX_BYTES {
        false => Ok(bytes),
        true if is_policy_so_far(&bytes) || Program::is_program(&bytes) => Err(too_long()),
        true => Ok(head_of(&bytes).to_owned()),
    }
}

/// Reads from the input until `bytes` holds `most` bytes, and then one byte more if the input has one. A
/// caller that finds more than `most` bytes knows that the input is too long.
fn read_to(bytes: &mut Vec<u8>, from: impl Read, most: usize) -> io::Result<()> {
    let room = (most + 1).saturating_sub(bytes.len());
    from.take(room as u64).read_to_end(bytes)?;
    Ok(())
}

fn too_long() -> String {
    format!(
        "the policy is longer than {MAX_BYTES} bytes, the limit for a policy with its includes; name ranges instead of single MSRs"
    )
}

/// Returns the bytes as a policy's text, or the reason why they are not UTF-8. The reason has the place of
/// the first wrong byte only if the bytes are a policy.
pub(crate) fn text(bytes: &[u8]) -> Result<&str, String> {
    std::str::from_utf8(bytes).map_err(|error| {
        let at = error.valid_up_to();
        if is_policy_so_far(bytes) {
            format!("byte {at} is not UTF-8 text, but a policy must be UTF-8 text")
        } else {
            "this text is not a policy: it is not UTF-8 text, and has no line `policy = 1`"
                .to_owned()
        }
    })
}
