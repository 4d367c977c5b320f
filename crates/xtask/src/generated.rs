//! The writing of generated files, and their comparison with the files that are committed.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, bail};

/// Writes each text to the file at its path.
pub(crate) fn write(files: Vec<(PathBuf, String)>) -> anyhow::Result<()> {
    for (path, text) in files {
        fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
    }
    Ok(())
}

/// Returns an error if a committed file differs from its generated text. `source` completes the message
/// "FILE differs from …": `source` names what the file is generated from, and the command that
/// regenerates the file.
pub(crate) fn compare(files: Vec<(PathBuf, String)>, source: &str) -> anyhow::Result<()> {
    for (path, text) in files {
        let committed =
            fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
        if committed != text {
            bail!("{} differs from {source}", path.display());
        }
    }
    Ok(())
}
