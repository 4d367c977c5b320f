//! Tests of the build ID, by which the command recognises a library of its own build.
#![expect(
    clippy::unwrap_used,
    reason = "all of this is a test, its functions too"
)]

use std::fs;
use std::path::{Path, PathBuf};

use msrgate_state::BUILD;
use tempfile::TempDir;

#[path = "../build/sources.rs"]
mod sources;

/// Makes five crates with one source file each, and returns the folder of the crate `state` among them.
fn crates() -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    for name in ["filter", "program", "kvm", "preload", "state"] {
        let source = folder.path().join(name).join("src/inner");
        fs::create_dir_all(&source).unwrap();
        fs::write(source.join("a.rs"), name).unwrap();
    }
    let own = folder.path().join("state");
    (folder, own)
}

#[test]
fn build_text_has_crate_version_and_digest_of_present_sources() {
    let own = Path::new(env!("CARGO_MANIFEST_DIR"));
    let digest = sources::digest(own).unwrap();
    assert_eq!(sources::folders(own).len(), 5);
    let version = env!("CARGO_PKG_VERSION");
    assert_eq!(BUILD, format!("msrgate-build {version} {digest}"));
}

#[test]
fn digest_of_same_sources_is_the_same_in_another_folder() {
    let ((_one, one), (_other, other)) = (crates(), crates());
    assert_eq!(
        sources::digest(&one).unwrap(),
        sources::digest(&other).unwrap()
    );
}

#[test]
fn digest_differs_after_source_of_any_shared_crate_is_changed_renamed_or_added() {
    let (folder, own) = crates();
    let mut seen = vec![sources::digest(&own).unwrap()];
    let mut changed = || {
        let digest = sources::digest(&own).unwrap();
        assert!(!seen.contains(&digest), "{seen:?}");
        seen.push(digest);
    };
    for name in ["filter", "program", "kvm", "preload", "state"] {
        let file = folder.path().join(name).join("src/inner/a.rs");
        fs::write(&file, format!("{name} ")).unwrap();
        changed();
        fs::rename(&file, file.with_file_name("b.rs")).unwrap();
        changed();
        fs::write(file, "").unwrap();
        changed();
    }
}
