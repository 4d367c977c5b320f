//! The search for the library that goes into the VMM.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use msrgate_policy::one_line;
use msrgate_state::BUILD;

use crate::failure::Failure;
use crate::named::name;

/// The environment variable with the library's path.
const VARIABLE: &str = "MSRGATE_PRELOAD";
/// The name of the library's file.
const FILE: &str = "libmsrgate_preload.so";

/// Finds the library of this build: by the environment variable, in the folder of an installation, or beside
/// the command.
///
/// # Errors
/// The library is missing, cannot be read, or is from another build.
pub(super) fn find() -> Result<PathBuf, Failure> {
    let path = match env::var_os(VARIABLE) {
        Some(path) => PathBuf::from(path),
        None => beside_command()?,
    };
    let path = fs::canonicalize(&path).map_err(|error| unreadable(&path, &error))?;
    let bytes = fs::read(&path).map_err(|error| unreadable(&path, &error))?;
    if memchr::memmem::find(&bytes, BUILD.as_bytes()).is_none() {
        return Err(Failure::Refused(format!(
            "{}: this is not the library of this msrgate ({BUILD}); install both from one build",
            shown(&path)
        )));
    }
    Ok(path)
}

fn beside_command() -> Result<PathBuf, Failure> {
    let command = env::current_exe().map_err(|error| Failure::Input {
        what: "msrgate's own path".to_owned(),
        why: error.to_string(),
    })?;
    let folder = command.parent().unwrap_or(Path::new("/"));
    let installed = folder.join("../lib/msrgate").join(FILE);
    let places = [installed, folder.join(FILE)];
    places.iter().find(|place| place.is_file()).cloned().ok_or_else(|| {
        Failure::Refused(format!(
            "there is no {FILE}, neither in {} nor in {}; build it by `cargo build -p msrgate-preload`, or name it by {VARIABLE}",
            shown(&folder.join("../lib/msrgate")),
            shown(folder)
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
