//! The search for the file of msrgate's library, which the VMM is to load.

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

/// The environment variable that may hold the path of msrgate's library.
const VARIABLE: &str = "MSRGATE_PRELOAD";

/// The name under which a shared library depends on glibc. The name of musl has no number.
const GLIBC: &[u8] = b"libc.so.6\0";

impl Libc {
    /// Returns the file name of msrgate's library for this C library.
    const fn file(self) -> &'static str {
        match self {
            Self::Glibc => "libmsrgate_preload.so",
            Self::Musl => "libmsrgate_preload.musl.so",
        }
    }

    /// Returns the command line that builds msrgate's library for this C library.
    const fn build(self) -> &'static str {
        match self {
            Self::Glibc => "cargo build -p msrgate-preload",
            Self::Musl => "scripts/build-musl",
        }
    }
}

/// Finds msrgate's library of this build for VMMs that use the C library `libc`: by the environment
/// variable, in the folder of an installation, beside the command's file, or embedded in the command.
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

/// Returns true if a file contains these bytes. The function reads the file in parts, because memory for the
/// whole file would cost more time than the search.
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
    fn search_in_file_finds_bytes_that_lie_across_two_parts_of_file() {
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
