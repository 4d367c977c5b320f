//! The messages about files that cannot be opened, read or written.

use std::env;
use std::io;
use std::path::Path;

use crate::named;
use crate::shipped::SHIPPED;

/// Returns the text of an I/O error without `(os error N)`.
pub(crate) fn reason(error: &io::Error) -> String {
    let text = error.to_string();
    let text = text.split(" (os error").next().unwrap_or_default();
    let mut rest = text.chars();
    let first = rest.next().map(|first| first.to_ascii_lowercase());
    first.into_iter().chain(rest).collect()
}

/// Returns the reason why a file could not be opened or written. If the file does not exist, the reason
/// names the folder.
pub(crate) fn why(path: &Path, error: &io::Error) -> String {
    if error.kind() != io::ErrorKind::NotFound {
        return reason(error);
    }
    let folder = path.parent().filter(|folder| *folder != Path::new(""));
    match folder {
        Some(folder) if !folder.is_dir() => format!("there is no folder {}", named::shown(folder)),
        _ if path.is_symlink() => "the link points to a file that does not exist".to_owned(),
        Some(folder) => format!("there is no such file in {}", named::shown(folder)),
        None => "there is no such file in the current folder".to_owned(),
    }
}

/// Returns the name of the folder of `path` for a message. A folder below the working folder is named
/// relative to the working folder.
pub(crate) fn folder(path: &Path) -> String {
    let current = env::current_dir().ok();
    let below = current.and_then(|current| path.strip_prefix(current).ok());
    match below.unwrap_or(path) {
        here if here == Path::new("") => "the current folder".to_owned(),
        path => named::shown(path),
    }
}

/// Returns the shipped policy that a misspelt name probably means, with or without `.toml`.
pub(crate) fn meant(name: &str) -> Option<&'static str> {
    let name = name.strip_suffix(".toml").unwrap_or(name).to_lowercase();
    let names = SHIPPED.iter().map(|shipped| shipped.name);
    let distances = names.map(|known| (strsim::osa_distance(&name, known), known));
    let (distance, known) = distances.min()?;
    (distance <= known.len() / 4).then_some(known)
}
