//! Computes the build ID, by which the command recognises a library of its own build: builds from different
//! sources have different IDs.

use std::env;
use std::error::Error;
use std::path::PathBuf;

#[path = "build/sources.rs"]
mod sources;

fn main() -> Result<(), Box<dyn Error>> {
    let own = env::var_os("CARGO_MANIFEST_DIR").ok_or("cargo sets CARGO_MANIFEST_DIR")?;
    let own = PathBuf::from(own);
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=build");
    for folder in sources::folders(&own) {
        println!("cargo::rerun-if-changed={}", folder.display());
    }
    println!(
        "cargo::rustc-env=MSRGATE_SOURCES={}",
        sources::digest(&own)?
    );
    Ok(())
}
