//! Copies the preload library that is to be embedded in the command. The environment variable
//! `MSRGATE_PRELOAD_FILE` names the library's file.

use std::error::Error;
use std::path::Path;
use std::{env, fs};

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-env-changed=MSRGATE_PRELOAD_FILE");
    let folder = env::var_os("OUT_DIR").ok_or("cargo sets OUT_DIR")?;
    let copy = Path::new(&folder).join("preload.so");
    match env::var_os("MSRGATE_PRELOAD_FILE").filter(|path| !path.is_empty()) {
        Some(path) => {
            let path = Path::new(&path);
            println!("cargo::rerun-if-changed={}", path.display());
            let bytes = fs::read(path)
                .map_err(|error| format!("MSRGATE_PRELOAD_FILE={}: {error}", path.display()))?;
            fs::write(copy, bytes)?;
        }
        // Without the variable, the copy is an empty file: the command then has no library of its
        // own.
        None => fs::write(copy, [])?,
    }
    Ok(())
}
