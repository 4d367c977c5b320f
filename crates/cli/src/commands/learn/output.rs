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
use crate::links::{self, Target};
use crate::load::is_standard_input;
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

/// Returns true if `-o` means standard output.
pub(super) fn is_standard(args: &LearnArgs) -> bool {
    is_standard_input(&args.output)
}

/// Returns the name of the new policy in messages.
pub(super) fn name(args: &LearnArgs) -> String {
    if is_standard(args) {
        "the policy".to_owned()
    } else {
        named::shown(&args.output)
    }
}

/// Checks that the new policy can be written, so that a wrong name is found before the VMM runs.
///
/// # Errors
/// The output is the VMM's standard output; or the file cannot be written, or has content and is not the policy of
/// `--merge`.
pub(super) fn check(args: &LearnArgs) -> Result<(), Failure> {
    match (is_standard(args), args.vmm.is_empty()) {
        (false, _) => file(args).map(drop),
        (true, true) => Ok(()),
        (true, false) => Err(Failure::Usage(
            "-o - is refused: standard output is the VMM's; name a file".to_owned(),
        )),
    }
}

/// Returns the file of the new policy. Nothing is left of the attempt to make one.
fn file(args: &LearnArgs) -> Result<Output, Failure> {
    let path = &*args.output;
    let failed = |error: io::Error| whole::unwritable(path, &error);
    match fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let (Target::Path(there) | Target::Open(there)) =
                links::follow(path).map_err(failed)?;
            whole::check_new(&there).map(|()| Output::New)
        }
        Ok(there) => {
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
            if there.is_file() {
                whole::check_protection(&there).map_err(failed)?;
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
    let written = file(args).and_then(|output| match (output, &old.place) {
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
