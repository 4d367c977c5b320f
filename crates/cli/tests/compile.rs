//! What `compile` writes, `diff` reads, whatever it is called.

#![expect(
    clippy::unwrap_used,
    reason = "a failed assumption is the result of a test"
)]

use std::fs::{self, OpenOptions, Permissions};
use std::io::Read as _;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _, symlink};
use std::path::Path;
use std::process::{Command, Output, Stdio};

const GOOD: &str = "tests/policies/good.toml";
const ORG: &str = "tests/policies/org.toml";

fn msrgate(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_msrgate"));
    command
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

/// Compiled into a file of this folder.
fn compile(folder: &Path, format: &str) -> String {
    let file = folder.join(format).display().to_string();
    let output = msrgate(&["compile", GOOD, "--format", format, "-o", &file]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert!(output.stdout.is_empty());
    file
}

#[test]
fn what_was_compiled_is_no_other_than_its_policy() {
    let folder = tempfile::tempdir().unwrap();
    for format in ["program", "json", "abi"] {
        let file = compile(folder.path(), format);
        let of = |arguments: &[&str]| msrgate(arguments).status.code();
        assert_eq!(of(&["diff", GOOD, &file]), Some(0), "{format}");
        assert_eq!(of(&["diff", &file, GOOD]), Some(0), "{format}");
        assert_eq!(of(&["diff", &file, ORG]), Some(1), "{format}");
        assert_eq!(of(&["check", GOOD, "--within", &file]), Some(0), "{format}");
    }
}

#[test]
fn standard_output_gets_the_same_bytes_as_a_file() {
    let folder = tempfile::tempdir().unwrap();
    for format in ["program", "json", "rust", "c", "abi"] {
        let file = compile(folder.path(), format);
        let output = msrgate(&["compile", GOOD, "--format", format]);
        assert!(output.stdout == fs::read(file).unwrap(), "{format}");
    }
}

/// A file is replaced, and nothing is left beside it.
#[test]
fn a_file_is_written_whole_by_rename() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("json");
    fs::write(&file, "x".repeat(10_000)).unwrap();
    compile(folder.path(), "json");
    let text = fs::read_to_string(&file).unwrap();
    assert!(text.starts_with('{') && text.ends_with("}\n"), "{text}");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    let refused = msrgate(&[
        "compile",
        "tests/policies/bad.toml",
        "-o",
        file.to_str().unwrap(),
    ]);
    assert_eq!(refused.status.code(), Some(1));
    assert_eq!(fs::read_to_string(&file).unwrap(), text);
}

#[test]
fn a_program_cut_off_is_an_error_of_input() {
    let folder = tempfile::tempdir().unwrap();
    let file = compile(folder.path(), "program");
    let bytes = fs::read(&file).unwrap();
    fs::write(&file, &bytes[..bytes.len() - 1]).unwrap();
    let output = msrgate(&["diff", &file, GOOD]);
    assert_eq!(output.status.code(), Some(2));
    let talk = String::from_utf8(output.stderr).unwrap();
    assert!(talk.contains("a program cut off after"), "{talk}");
}

/// A link leads to what is written, and a file that others may not read stays so.
#[test]
fn a_file_that_is_there_keeps_its_name_and_its_mode() {
    let folder = tempfile::tempdir().unwrap();
    let (file, link) = (folder.path().join("a"), folder.path().join("b"));
    fs::write(&file, "").unwrap();
    fs::set_permissions(&file, Permissions::from_mode(0o600)).unwrap();
    symlink("a", &link).unwrap();
    let to = link.display().to_string();
    let output = msrgate(&["compile", GOOD, "--format", "json", "-o", &to]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
    assert_eq!(fs::read(&file).unwrap().first(), Some(&b'{'));
    assert_eq!(
        fs::metadata(&file).unwrap().permissions().mode() & 0o7777,
        0o600
    );
}

/// `-o /dev/null` as root once made a file of the device.
#[test]
fn what_is_no_file_is_written_to_and_stays() {
    let folder = tempfile::tempdir().unwrap();
    let pipe = folder.path().join("pipe");
    assert!(
        Command::new("mkfifo")
            .arg(&pipe)
            .status()
            .unwrap()
            .success()
    );
    let to = pipe.display().to_string();
    // Opened for both, so that neither end waits for the other.
    let mut both = OpenOptions::new()
        .read(true)
        .write(true)
        .open(&pipe)
        .unwrap();
    let output = msrgate(&["compile", GOOD, "--format", "json", "-o", &to]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert!(fs::symlink_metadata(&pipe).unwrap().file_type().is_fifo());
    let mut first = [0];
    both.read_exact(&mut first).unwrap();
    assert_eq!(first, *b"{");
}
