//! The search for the library that goes into the VMM.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use msrgate_policy::one_line;
use msrgate_state::BUILD;

use super::elf::Libc;
use crate::failure::Failure;
use crate::named::name;

/// The environment variable with the library's path.
const VARIABLE: &str = "MSRGATE_PRELOAD";

impl Libc {
    /// Returns the name of the library's file.
    const fn file(self) -> &'static str {
        match self {
            Self::Glibc => "libmsrgate_preload.so",
            Self::Musl => "libmsrgate_preload.musl.so",
        }
    }

    /// Returns the command that builds the library.
    const fn build(self) -> &'static str {
        match self {
            Self::Glibc => "cargo build -p msrgate-preload",
            Self::Musl => "scripts/build-musl",
        }
    }

    /// Returns the C library of a library of ours: glibc has the number 6 in its name.
    fn of_library(bytes: &[u8]) -> Self {
        match memchr::memmem::find(bytes, b"libc.so.6\0") {
            Some(_) => Self::Glibc,
            None => Self::Musl,
        }
    }
}

/// Finds the library of this build for VMMs of one C library: by the environment variable, in the folder of an installation, or beside
/// the command.
///
/// # Errors
/// The library is missing, cannot be read, or is from another build or for another C library.
pub(super) fn find(libc: Libc) -> Result<PathBuf, Failure> {
    let path = match env::var_os(VARIABLE) {
        Some(path) => PathBuf::from(path),
        None => beside_command(libc)?,
    };
    let path = fs::canonicalize(&path).map_err(|error| unreadable(&path, &error))?;
    let bytes = fs::read(&path).map_err(|error| unreadable(&path, &error))?;
    if memchr::memmem::find(&bytes, BUILD.as_bytes()).is_none() {
        return Err(Failure::Refused(format!(
            "{}: this is not the library of this msrgate ({BUILD}); install both from one build",
            shown(&path)
        )));
    }
    let built_for = Libc::of_library(&bytes);
    if built_for != libc {
        return Err(Failure::Refused(format!(
            "{}: this library is for programs of {}, and the VMM is one of {}: name {} by {VARIABLE}, or leave that out",
            shown(&path),
            built_for.name(),
            libc.name(),
            libc.file()
        )));
    }
    Ok(path)
}

fn beside_command(libc: Libc) -> Result<PathBuf, Failure> {
    let command = env::current_exe().map_err(|error| Failure::Input {
        what: "msrgate's own path".to_owned(),
        why: error.to_string(),
    })?;
    let folder = command.parent().unwrap_or(Path::new("/"));
    let file = libc.file();
    let installed = folder.join("../lib/msrgate").join(file);
    let places = [installed, folder.join(file)];
    places.iter().find(|place| place.is_file()).cloned().ok_or_else(|| {
        Failure::Refused(format!(
            "there is no {file}, neither in {} nor in {}; build it by `{}`, or name it by {VARIABLE}",
            shown(&folder.join("../lib/msrgate")),
            shown(folder),
            libc.build()
        ))
    })
}

fn unreadable(path: &Path, error: &std::io::Error) -> Failure {
    Failure::Input {
        what: name(path),
        why: format!(
            "{error}; it is the library that {VARIABLE} names, or that was installed with msrgate"
        ),
    }
}

fn shown(path: &Path) -> String {
    one_line(&name(path))
}
