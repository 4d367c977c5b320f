//! The search for the library that goes into the VMM.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use msrgate_policy::one_line;
use msrgate_state::BUILD;

use super::embedded;
use crate::failure::Failure;
use crate::named::name;

/// The environment variable with the library's path.
const VARIABLE: &str = "MSRGATE_PRELOAD";
/// The name of the library's file.
const FILE: &str = "libmsrgate_preload.so";

/// Finds the library of this build: by the environment variable, in the folder of an installation, beside
/// the command, or inside of it.
///
/// # Errors
/// The library is missing, cannot be read, or is from another build.
pub(super) fn find() -> Result<PathBuf, Failure> {
    let path = match env::var_os(VARIABLE) {
        Some(path) => PathBuf::from(path),
        None => installed()?,
    };
    // The name of a file in memory is not its path.
    let path = if path.starts_with("/proc/self/fd") {
        path
    } else {
        fs::canonicalize(&path).map_err(|error| unreadable(&path, &error))?
    };
    let bytes = fs::read(&path).map_err(|error| unreadable(&path, &error))?;
    if memchr::memmem::find(&bytes, BUILD.as_bytes()).is_none() {
        return Err(Failure::Refused(format!(
            "{}: this is not the library of this msrgate ({BUILD}); install both from one build",
            shown(&path)
        )));
    }
    Ok(path)
}

fn installed() -> Result<PathBuf, Failure> {
    let command = env::current_exe().map_err(|error| Failure::Input {
        what: "msrgate's own path".to_owned(),
        why: error.to_string(),
    })?;
    let folder = command.parent().unwrap_or(Path::new("/"));
    let installed = folder.join("../lib/msrgate").join(FILE);
    let places = [installed, folder.join(FILE)];
    if let Some(there) = places.into_iter().find(|place| place.is_file()) {
        return Ok(there);
    }
    match embedded::find() {
        Some(copy) => copy.map_err(|error| Failure::Host(format!(
            "there is no room for a copy of the library that msrgate has inside: {error}; name a copy by {VARIABLE}"
        ))),
        None => Err(Failure::Refused(format!(
            "there is no {FILE}, neither in {} nor in {}; build it by `cargo build -p msrgate-preload`, or name it by {VARIABLE}",
            shown(&folder.join("../lib/msrgate")),
            shown(folder)
        ))),
    }
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
