//! The digest of the sources that a command and its library share.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use hmac_sha256::Hash;

/// The folders of the sources, relative to this crate's folder: this crate, the crates that it and the
/// library depend on, and the library.
const FOLDERS: [&str; 5] = [
    "src",
    "../filter/src",
    "../program/src",
    "../kvm/src",
    "../preload/src",
];

/// Returns those of [`FOLDERS`] that exist. A published package of this crate has only its own sources, so
/// its version stands for those of the other crates.
pub(crate) fn folders(own: &Path) -> Vec<PathBuf> {
    let all = FOLDERS.iter().map(|folder| own.join(folder));
    all.filter(|folder| folder.is_dir()).collect()
}

/// Returns the first 64 bits of the sources' digest as a hexadecimal number. The digest depends on the names
/// and bytes of the source files, and not on the folder that the crates are in.
///
/// # Errors
/// A source file cannot be read.
pub(crate) fn digest(own: &Path) -> io::Result<String> {
    let mut hash = Hash::new();
    for folder in folders(own) {
        let mut files = Vec::new();
        find(&folder, &mut files)?;
        files.sort();
        for file in files {
            let name = file.strip_prefix(own).unwrap_or(&file).as_os_str();
            let bytes = fs::read(&file)?;
            for part in [name.as_encoded_bytes(), &bytes] {
                hash.update((part.len() as u64).to_le_bytes());
                hash.update(part);
            }
        }
    }
    let digest = hash.finalize();
    let hex = digest.iter().take(8).map(|byte| format!("{byte:02x}"));
    Ok(hex.collect())
}

fn find(folder: &Path, files: &mut Vec<PathBuf>) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            find(&path, files)?;
        } else if path.extension().is_some_and(|end| end == "rs") {
            files.push(path);
        }
    }
    Ok(())
}
