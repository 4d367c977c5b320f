//! The writing of generated files, and their comparison with the files that are committed.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, bail};

/// Writes the files.
pub(crate) fn write(files: Vec<(PathBuf, String)>) -> anyhow::Result<()> {
    for (path, text) in files {
        fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
    }
    Ok(())
}

/// Returns an error if a committed file differs. `source` completes the message "FILE is not what …": it
/// names the source and the command that regenerates the file.
pub(crate) fn compare(files: Vec<(PathBuf, String)>, source: &str) -> anyhow::Result<()> {
    for (path, text) in files {
        let committed =
            fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
        if committed != text {
            bail!("{} is not what {source}", path.display());
        }
    }
    Ok(())
}
