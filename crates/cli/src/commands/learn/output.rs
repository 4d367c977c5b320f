//! The file of a learnt policy, which may not exist yet.

use std::fs::{self, File};
use std::io;
use std::path::Path;

use msrgate_policy::learn::Learnt;

use super::super::exec::say;
use super::Old;
use crate::cli::LearnArgs;
use crate::failure::Failure;
use crate::files::{Inode, Opened, Place};
use crate::links;
use crate::named;
use crate::whole::{self, Content};

/// The file of the new policy.
pub(super) enum Output {
    /// It does not exist.
    New,
    /// It exists, and is empty.
    Blank(Blank),
    /// It is the policy of `--merge`.
    Old,
}

/// An empty file.
pub(super) enum Blank {
    /// One with a name.
    File(Box<Opened>),
    /// One that a process has opened, such as `/dev/stdout`.
    Open,
}

impl Blank {
    /// Returns the file to which `path` led when it was opened, if it is empty.
    fn of(path: &Path, file: &File) -> Option<Self> {
        let is_empty = file.metadata().is_ok_and(|file| file.len() == 0);
        match Place::of_file(path, file) {
            _ if !is_empty => None,
            Place::File {
                opened: Some(opened),
                ..
            } if !links::is_open_file(path) => {
                (opened.metadata.len() == 0).then_some(Self::File(opened))
            }
            _ => Some(Self::Open),
        }
    }
}

/// Checks that the file of the new policy can be written, so that a wrong name is found before the VMM runs. A file
/// that does not exist is made and removed again: if this process is killed, it leaves none.
///
/// # Errors
/// The file cannot be written, or has content and is not the policy of `--merge`.
pub(super) fn check_output(args: &LearnArgs) -> Result<Output, Failure> {
    let path = &*args.output;
    if path.as_os_str() == "-" {
        return Err(Failure::Usage(
            "-o - is refused: standard output is the VMM's; name a file".to_owned(),
        ));
    }
    let failed = |error: io::Error| Failure::Input {
        what: named::name(path),
        why: format!("cannot be written: {error}"),
    };
    match File::options().write(true).create_new(true).open(path) {
        Ok(_) => fs::remove_file(path).map(|()| Output::New).map_err(failed),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            let there = fs::metadata(path).map_err(failed)?;
            let is_recording = args.from.iter().any(|one| is_same(one, path));
            let is_old = args.merge.as_ref().is_some_and(|old| is_same(old, path));
            let opened = || File::options().append(true).open(path).map_err(failed);
            let blank = if there.is_file() && there.len() == 0 && !is_old {
                Blank::of(path, &opened()?)
            } else {
                None
            };
            if is_recording || (blank.is_none() && !is_old) {
                let file = named::shown(path);
                return Err(Failure::Usage(format!(
                    "{file} exists; to add to a policy of this name, write --merge {file} -o {file}; else name another file"
                )));
            }
            match blank {
                Some(blank) => Ok(Output::Blank(blank)),
                None => opened().map(|_| Output::Old),
            }
        }
        Err(error) => Err(failed(error)),
    }
}

/// Writes the policy into its file. A file that is there is replaced only if it is still what was read.
///
/// # Errors
/// The file cannot be written, or another process has made or changed it in the meantime. The policy is then shown.
pub(super) fn put(args: &LearnArgs, old: &Old, learnt: &Learnt) -> Result<(), Failure> {
    let (path, bytes) = (&*args.output, learnt.text.as_bytes());
    let written = check_output(args).and_then(|output| match (output, &old.place) {
        (Output::New, _) => whole::create(path, bytes),
        (Output::Blank(Blank::File(opened)), _) => whole::replace(path, &opened, bytes),
        (
            Output::Old,
            Some(Place::File {
                opened: Some(opened),
                ..
            }),
        ) => whole::replace(path, opened, bytes),
        _ => whole::write(path, bytes, Content::Text),
    });
    written.inspect_err(|_| {
        say("the policy cannot be written, and is shown here instead:");
        crate::results::talk(&learnt.text);
    })
}

/// Returns true if both paths lead to one regular file.
fn is_same(one: &Path, other: &Path) -> bool {
    let inode = Inode::behind(one);
    inode.is_some() && inode == Inode::behind(other)
}
