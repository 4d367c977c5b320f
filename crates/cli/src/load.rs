//! The steps from the argument POLICY to a compiled policy: reading the file, parsing it, and packing its
//! entries into a filter.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::fmt::Write as _;
use std::fs::File;
use std::io;
use std::path::Path;

use msrgate_filter::{Access, Bitmap, MAX_RANGES};
use msrgate_policy::{
    Action, CompileError, Compiled, Entry, Mode, NotCompiled, PackError, Policy, Source, Window,
    compile, parse, shown_name,
};

use crate::descriptors::{STDIN, duplicate};
use crate::failure::Failure;
use crate::files::{Files, Inode, Place, read_bytes, text};
use crate::missing;
use crate::named::name;
use crate::output;
use crate::shipped::{SHIPPED, shipped};

/// The bytes of the file that a command's argument names, and the place from which they were read.
#[derive(Debug)]
pub(crate) struct Input {
    /// The name of the input in messages.
    pub(crate) name: String,
    pub(crate) bytes: Vec<u8>,
    pub(crate) place: Place,
    /// The inode of the file that was read; `None` for a shipped policy, and for anything but a regular
    /// file.
    pub(crate) inode: Option<Inode>,
}

impl Input {
    /// Reads an argument: a file, `-` for standard input, or a shipped policy.
    pub(crate) fn read(argument: &Path) -> Result<Self, Failure> {
        if is_standard_input(argument) {
            let name = "standard input".to_owned();
            let from = standard_input()?;
            let inode = Inode::of_open(&from);
            return Self::of(name, read_bytes(from), Place::StandardInput, inode);
        }
        let name = name(argument);
        match File::open(argument) {
            Ok(file) if file.metadata().is_ok_and(|found| found.is_dir()) => {
                let hidden = argument.to_str().and_then(shipped);
                let why = hidden.map_or_else(
                    || "this is a folder; name a file in it".to_owned(),
                    |shipped| {
                        let name = shipped.name;
                        format!("this folder hides the shipped policy of the same name\n  rename the folder, or write `msrgate policies {name} | msrgate check -`")
                    },
                );
                Err(Failure::Input { what: name, why })
            }
            Ok(file) => {
                let place = Place::of_file(argument, &file);
                let inode = Inode::of_open(&file);
                Self::of(name, read_bytes(file), place, inode)
            }
            Err(error) => match argument.to_str().and_then(shipped) {
                // If a dangling link has this name, the name means the link, and not a shipped policy.
                Some(shipped)
                    if error.kind() == io::ErrorKind::NotFound && !argument.is_symlink() =>
                {
                    let source = shipped.source();
                    let bytes = Ok(source.text().into());
                    let place = Place::Shipped(shipped);
                    Self::of(source.name().to_owned(), bytes, place, None)
                }
                _ => Err(unreadable(argument, &error)),
            },
        }
    }

    fn of(
        name: String,
        bytes: Result<Vec<u8>, String>,
        place: Place,
        inode: Option<Inode>,
    ) -> Result<Self, Failure> {
        match bytes {
            Ok(bytes) => Ok(Self {
                name,
                bytes,
                place,
                inode,
            }),
            Err(why) => Err(Failure::Input { what: name, why }),
        }
    }

    /// Returns the bytes of the input as the text of a policy.
    pub(crate) fn source(&self) -> Result<Source, Failure> {
        let text = text(&self.bytes).map_err(|why| Failure::Input {
            what: self.name.clone(),
            why,
        })?;
        Ok(Source::new(&self.name, text).with_identity(&self.place.identity()))
    }

    /// Parses the input as a policy, and packs the policy's entries into a filter.
    pub(crate) fn compiled(&self) -> Result<Compiled, Failure> {
        self.compiled_with_files(None).map(|(compiled, _)| compiled)
    }

    /// Parses the input as a policy, and packs the policy's entries into a filter. If `mode` is given, it
    /// replaces the policy's own mode. Also returns the files that the policy includes.
    pub(crate) fn compiled_with_files(
        &self,
        mode: Option<Mode>,
    ) -> Result<(Compiled, HashSet<Inode>), Failure> {
        self.compile(&self.source()?, mode)
    }

    /// Parses another text in place of the input's own, as a policy in the same file.
    pub(crate) fn compiled_with_text(&self, text: &str) -> Result<Compiled, Failure> {
        let source = Source::new(&self.name, text).with_identity(&self.place.identity());
        self.compile(&source, None).map(|(compiled, _)| compiled)
    }

    fn compile(
        &self,
        source: &Source,
        mode: Option<Mode>,
    ) -> Result<(Compiled, HashSet<Inode>), Failure> {
        let mut files = Files::from(source, &self.place);
        let mut resolved = parse(source, &mut files).map_err(Failure::Mistakes)?;
        if let Some(mode) = mode {
            resolved = resolved.in_mode(mode);
        }
        let compiled = compile(resolved).map_err(|NotCompiled { policy, error }| {
            let clusters = match &error {
                CompileError::Pack(PackError::TooManyRanges(windows)) => clusters(&policy, windows),
                _ => String::new(),
            };
            Failure::Refused(format!(
                "{}: {error}{clusters}",
                shown_name(policy.source().name())
            ))
        })?;
        Ok((compiled, files.inodes()))
    }
}

/// Reads and parses a policy, and packs its entries into a filter.
pub(crate) fn compiled(policy: &Path) -> Result<Compiled, Failure> {
    Input::read(policy)?.compiled()
}

/// Reads and parses a policy, and packs its entries into a filter. If `mode` is given, it replaces the
/// policy's own mode. Also returns the files that the policy was read from.
pub(crate) fn compiled_in(
    policy: &Path,
    mode: Option<Mode>,
) -> Result<(Compiled, HashSet<Inode>), Failure> {
    let input = Input::read(policy)?;
    let (compiled, mut files) = input.compiled_with_files(mode)?;
    files.extend(input.inode);
    Ok((compiled, files))
}

/// Opens standard input.
///
/// # Errors
/// msrgate was started without standard input.
pub(crate) fn standard_input() -> Result<File, Failure> {
    duplicate(STDIN).map_err(|error| Failure::Input {
        what: "standard input".to_owned(),
        why: format!(
            "msrgate was started without standard input: {}",
            missing::reason(&error)
        ),
    })
}

/// Returns true if an argument means standard input.
pub(crate) fn is_standard_input(argument: &Path) -> bool {
    argument.as_os_str() == "-"
}

/// Returns the advice about a policy's entry that is too large for any filter, or `None` if there is no such
/// entry. Such an entry differs from the default action, and has more MSRs than all ranges of a filter
/// together.
fn too_wide(policy: &Policy) -> Option<String> {
    let reach = MAX_RANGES as u64 * u64::from(Bitmap::MAX_COUNT);
    let default = policy.default_action().verdict();
    let (entry, action) = policy.entries().iter().find_map(|entry| {
        let mut actions = Access::ALL.into_iter().filter_map(|one| entry.action(one));
        let action = actions.find(|one| one.verdict() != default)?;
        (entry.msrs().count() > reach).then_some((entry, action))
    })?;
    let (other, rest) = match action {
        Action::Allow => ("allow", "refused"),
        Action::Kill => ("kill", "allowed"),
        _ => ("deny", "allowed"),
    };
    Some(format!(
        "\n  {} alone has more MSRs than the {reach} that all ranges of a filter can contain together\n  write `default = \"{other}\"` instead, and entries for the MSRs that are to be {rest}",
        output::where_it_stands(policy, entry),
    ))
}

/// Returns the advice about a policy that needs too many ranges: the clusters of MSRs that need a range
/// each, with the entries in them.
fn clusters(policy: &Policy, windows: &[Window]) -> String {
    const SHOWN: usize = 20;
    if let Some(wide) = too_wide(policy) {
        return wide;
    }
    let line = |window: &Window| {
        let within = |entry: &&Entry| {
            let mut ranges = entry.msrs().ranges().iter();
            ranges.any(|msrs| {
                msrs.first() <= window.msrs.last() && window.msrs.first() <= msrs.last()
            })
        };
        let mut entries = policy.entries().iter().filter(within);
        let first = entries.next().map_or(String::new(), |entry| {
            output::where_it_stands(policy, entry)
        });
        let more = match entries.count() {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        format!(
            "\n  {:<2} {:<24} {first}{more}",
            window.colour.to_string(),
            window.msrs.to_string()
        )
    };
    let lines: String = windows.iter().take(SHOWN).map(line).collect();
    let rest = match windows.len().saturating_sub(SHOWN) {
        0 => String::new(),
        rest => format!("\n  and {rest} more clusters"),
    };
    format!(
        "{lines}{rest}\n  delete all entries of a cluster, or give its reads and writes the same action, so that they share a range"
    )
}

fn unreadable(policy: &Path, error: &io::Error) -> Failure {
    let what = name(policy);
    let mut why = missing::why(policy, error);
    if error.kind() == io::ErrorKind::NotFound {
        let is_bare = policy.components().count() == 1 && !what.contains('.');
        if is_bare {
            why.push_str(", and no shipped policy has this name");
        }
        if let Some(meant) = policy
            .file_name()
            .and_then(OsStr::to_str)
            .and_then(missing::meant)
        {
            let _ = write!(why, "\n  did you mean the shipped policy `{meant}`?");
        } else if is_bare {
            let names: Vec<_> = SHIPPED.iter().map(|shipped| shipped.name).collect();
            let _ = write!(why, "\n  the shipped policies are {}", names.join(", "));
        }
    }
    Failure::Input { what, why }
}
