//! The search for the library that goes into the VMM.

use std::env;
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use memchr::memmem;
use msrgate_policy::one_line;
use msrgate_state::BUILD;

use super::elf::Libc;
use super::embedded;
use crate::failure::Failure;
use crate::named::name;

/// The environment variable with the library's path.
const VARIABLE: &str = "MSRGATE_PRELOAD";

/// The name by which a library asks for glibc: it has the number 6.
const GLIBC: &[u8] = b"libc.so.6\0";

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
}

/// Finds the library of this build for VMMs of one C library: by the environment variable, in the folder of
/// an installation, beside the command, or inside of it.
///
/// # Errors
/// The library is missing, cannot be read, or is from another build or for another C library.
pub(super) fn find(libc: Libc) -> Result<PathBuf, Failure> {
    let path = match env::var_os(VARIABLE) {
        Some(path) => PathBuf::from(path),
        None => installed(libc)?,
    };
    // The name of a file in memory is not its path.
    let path = if path.starts_with("/proc/self/fd") {
        path
    } else {
        fs::canonicalize(&path).map_err(|error| unreadable(&path, &error))?
    };
    if !has(&path, BUILD.as_bytes()).map_err(|error| unreadable(&path, &error))? {
        return Err(Failure::Refused(format!(
            "{}: this is not the library of this msrgate ({BUILD}); install both from one build",
            shown(&path)
        )));
    }
    let is_for_glibc = has(&path, GLIBC).map_err(|error| unreadable(&path, &error))?;
    let built_for = if is_for_glibc {
        Libc::Glibc
    } else {
        Libc::Musl
    };
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

/// Returns true if a file has these bytes. The function reads the file part by part: memory for the whole of it
/// would cost more time than the search.
fn has(path: &Path, wanted: &[u8]) -> io::Result<bool> {
    let mut file = File::open(path)?;
    let mut part = vec![0; 1 << 16];
    // The end of the part before, in which the bytes may begin.
    let mut kept = 0;
    loop {
        let end = kept + file.read(&mut part[kept..])?;
        if memmem::find(&part[..end], wanted).is_some() {
            return Ok(true);
        }
        if end == kept {
            return Ok(false);
        }
        kept = end.min(wanted.len() - 1);
        part.copy_within(end - kept..end, 0);
    }
}

fn installed(libc: Libc) -> Result<PathBuf, Failure> {
    let command = env::current_exe().map_err(|error| Failure::Input {
        what: "msrgate's own path".to_owned(),
        why: error.to_string(),
    })?;
    let folder = command.parent().unwrap_or(Path::new("/"));
    let file = libc.file();
    let installed = folder.join("../lib/msrgate").join(file);
    let places = [installed, folder.join(file)];
    if let Some(there) = places.into_iter().find(|place| place.is_file()) {
        return Ok(there);
    }
    // A package embeds the library for its own C library, which is glibc.
    let embedded = match libc {
        Libc::Glibc => embedded::find(),
        Libc::Musl => None,
    };
    match embedded {
        Some(copy) => copy.map_err(|error| Failure::Host(format!(
            "there is no room for a copy of the library that msrgate has inside: {error}; name a copy by {VARIABLE}"
        ))),
        None => Err(Failure::Refused(format!(
            "there is no {file}, neither in {} nor in {}; build it by `{}`, or name it by {VARIABLE}",
            shown(&folder.join("../lib/msrgate")),
            shown(folder),
            libc.build()
        ))),
    }
}

fn unreadable(path: &Path, error: &io::Error) -> Failure {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_found_wherever_a_part_ends() {
        let file = tempfile::NamedTempFile::new().unwrap();
        for before in [0, 1, 65_530, 65_536, 131_070] {
            let mut bytes = vec![b'.'; before];
            bytes.extend_from_slice(b"wanted");
            fs::write(&file, &bytes).unwrap();
            assert!(has(file.path(), b"wanted").unwrap(), "{before}");
            bytes.pop();
            fs::write(&file, &bytes).unwrap();
            assert!(!has(file.path(), b"wanted").unwrap(), "{before}");
        }
    }
}
