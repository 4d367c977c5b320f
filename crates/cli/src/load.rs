//! From what was typed for POLICY to a compiled policy.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::Path;

use msrgate_filter::{Access, Bitmap, MAX_RANGES, Verdict};
use msrgate_policy::{
    Action, CompileError, Compiled, Entry, IncludeError, Includes, MAX_BYTES, NotCompiled,
    PackError, Policy, Source, Window, compile, one_line, parse,
};

use crate::failure::Failure;
use crate::output;

/// The policies in `policies/`, built in.
pub(crate) const SHIPPED: [Shipped; 8] = [
    Shipped {
        name: "allow-all",
        text: include_str!("../policies/allow-all.toml"),
    },
    Shipped {
        name: "linux-boot",
        text: include_str!("../policies/linux-boot.toml"),
    },
    Shipped {
        name: "linux-guest",
        text: include_str!("../policies/linux-guest.toml"),
    },
    Shipped {
        name: "unikernel",
        text: include_str!("../policies/unikernel.toml"),
    },
    Shipped {
        name: "sandbox",
        text: include_str!("../policies/sandbox.toml"),
    },
    Shipped {
        name: "pin-security",
        text: include_str!("../policies/pin-security.toml"),
    },
    Shipped {
        name: "quiet-unknown",
        text: include_str!("../policies/quiet-unknown.toml"),
    },
    Shipped {
        name: "no-power-telemetry",
        text: include_str!("../policies/no-power-telemetry.toml"),
    },
];

/// A policy that comes with the program.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shipped {
    pub(crate) name: &'static str,
    pub(crate) text: &'static str,
}

impl Shipped {
    fn source(self) -> Source {
        Source::new(&format!("{}.toml (shipped)", self.name), self.text)
    }

    /// The policy's first comment line, without its mark.
    pub(crate) fn summary(self) -> &'static str {
        let first = self.text.lines().next().unwrap_or_default();
        first.trim_start_matches(['#', ' '])
    }
}

/// Reads, parses and packs a policy.
pub(crate) fn compiled(policy: &str) -> Result<Compiled, Failure> {
    compiled_source(&source(policy)?)
}

/// Parses and packs a policy that has been read.
pub(crate) fn compiled_source(source: &Source) -> Result<Compiled, Failure> {
    let resolved = parse(source, &mut Files).map_err(Failure::Mistakes)?;
    compile(resolved).map_err(|NotCompiled { policy, error }| {
        let clusters = match &error {
            CompileError::Pack(PackError::TooManyRanges(windows)) => clusters(&policy, windows),
            _ => String::new(),
        };
        Failure::Refused(format!(
            "{}: {error}{clusters}",
            one_line(policy.source().name())
        ))
    })
}

/// What policies include: files, by a path from where the including one lies, and shipped policies
/// by name.
struct Files;

impl Includes for Files {
    fn open(&mut self, from: &Source, path: &str) -> Result<Source, IncludeError> {
        let folder = Path::new(from.name()).parent().unwrap_or(Path::new(""));
        let file = folder.join(path);
        // A shipped policy means its like, whatever lies in the folder where the command is run.
        let is_shipped =
            |one: &Shipped| *one.source().name() == *from.name() && one.text == from.text();
        if (!file.exists() || SHIPPED.iter().any(is_shipped))
            && let Some(shipped) = shipped(path)
        {
            return Ok(shipped.source());
        }
        // Messages quote what they complain of: only what is meant to be a policy is read.
        if Path::new(path)
            .extension()
            .is_none_or(|extension| extension != "toml")
        {
            return Err(IncludeError::new("an included policy is called NAME.toml"));
        }
        // One name for one file, however it is reached.
        let file = file
            .canonicalize()
            .map_err(|error| IncludeError::new(error.to_string()))?;
        if !file.is_file() {
            return Err(IncludeError::new("not a regular file"));
        }
        let name = file.display().to_string();
        let opened = File::open(&file).map_err(|error| IncludeError::new(error.to_string()))?;
        read(&name, opened).map_err(|failure| match failure {
            Failure::Input { why, .. } => IncludeError::new(why),
            other => IncludeError::new(other.to_string()),
        })
    }
}

/// An entry that has more MSRs than all ranges together could reach, and differs from the default.
fn too_wide(policy: &Policy) -> Option<String> {
    let reach = MAX_RANGES as u64 * u64::from(Bitmap::MAX_COUNT);
    let default = policy.default_action().verdict();
    let (entry, verdict) = policy.entries().iter().find_map(|entry| {
        let actions = Access::ALL.into_iter().filter_map(|one| entry.action(one));
        let verdict = actions.map(Action::verdict).find(|one| *one != default)?;
        (entry.msrs().count() > reach).then_some((entry, verdict))
    })?;
    let (other, rest) = match verdict {
        Verdict::Allow => ("allow", "refused"),
        Verdict::Deny => ("deny", "allowed"),
    };
    Some(format!(
        "\n  {} alone has more than the {reach} MSRs that all ranges reach together\n  write `default = \"{other}\"` instead, and an entry for what is to be {rest}",
        output::where_it_stands(policy, entry),
    ))
}

/// Where the ranges would lie, and for the sake of which entries.
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
        rest => format!("\n  and {rest} more"),
    };
    format!(
        "{lines}{rest}\n  drop all entries of a cluster, or let its reads and writes be alike, so that they share a range"
    )
}

/// Reads a policy.
pub(crate) fn source(policy: &str) -> Result<Source, Failure> {
    let (name, bytes) = bytes(policy)?;
    let text = text(&name, bytes)?;
    Ok(Source::new(&name, &text))
}

/// What is there under this argument, and what messages call it.
pub(crate) fn bytes(argument: &str) -> Result<(String, Vec<u8>), Failure> {
    let named = |name: &str, bytes| (name.to_owned(), bytes);
    if argument == "-" {
        let name = "standard input";
        return Ok(named(name, read_bytes(name, io::stdin().lock())?));
    }
    match File::open(argument) {
        Ok(file) => Ok(named(argument, read_bytes(argument, file)?)),
        Err(error) => match shipped(argument) {
            Some(shipped) if error.kind() == io::ErrorKind::NotFound => {
                let source = shipped.source();
                Ok(named(source.name(), source.text().into()))
            }
            _ => Err(unreadable(argument, &error)),
        },
    }
}

/// The shipped policy of this name.
pub(crate) fn shipped(name: &str) -> Option<Shipped> {
    SHIPPED.into_iter().find(|shipped| shipped.name == name)
}

fn read(name: &str, from: impl io::Read) -> Result<Source, Failure> {
    let text = text(name, read_bytes(name, from)?)?;
    Ok(Source::new(name, &text))
}

fn read_bytes(name: &str, from: impl io::Read) -> Result<Vec<u8>, Failure> {
    let trouble = |why: String| Failure::Input {
        what: name.to_owned(),
        why,
    };
    let mut bytes = Vec::new();
    // One byte more than a policy may have, so that a longer one is seen to be.
    let mut from = from.take(MAX_BYTES as u64 + 1);
    from.read_to_end(&mut bytes)
        .map_err(|error| trouble(error.to_string()))?;
    if bytes.len() > MAX_BYTES {
        return Err(trouble(format!(
            "longer than the {MAX_BYTES} bytes that a policy may have; name ranges instead of single MSRs"
        )));
    }
    Ok(bytes)
}

/// Bytes as a policy's text.
pub(crate) fn text(name: &str, bytes: Vec<u8>) -> Result<String, Failure> {
    String::from_utf8(bytes).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        Failure::Input {
            what: name.to_owned(),
            why: format!("not UTF-8 text (byte {at}); a policy is a TOML file"),
        }
    })
}

fn unreadable(policy: &str, error: &io::Error) -> Failure {
    let is_name = Path::new(policy).components().count() == 1 && !policy.contains('.');
    let why = if error.kind() == io::ErrorKind::NotFound && is_name {
        let names: Vec<_> = SHIPPED.iter().map(|shipped| shipped.name).collect();
        format!(
            "no such file, and no shipped policy of this name ({})",
            names.join(", ")
        )
    } else {
        error.to_string()
    };
    Failure::Input {
        what: policy.to_owned(),
        why,
    }
}
