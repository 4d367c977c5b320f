//! Files that are written whole or not at all.

use std::fs::Permissions;
use std::io::{self, Write as _};
use std::path::Path;

use crate::failure::Failure;

/// The file is the old one or the new one, never a part.
pub(crate) fn write(path: &Path, bytes: &[u8], permissions: Permissions) -> Result<(), Failure> {
    let folder = match path.parent() {
        Some(folder) if folder != Path::new("") => folder,
        _ => Path::new("."),
    };
    let write = || -> io::Result<()> {
        let mut file = tempfile::Builder::new()
            .permissions(permissions)
            .tempfile_in(folder)?;
        file.write_all(bytes)?;
        file.as_file().sync_all()?;
        file.persist(path)?;
        Ok(())
    };
    write().map_err(|error| Failure::Input {
        what: path.display().to_string(),
        // The error names the temporary file, which is nobody's business.
        why: format!("cannot be written: {}", error.kind()),
    })
}
