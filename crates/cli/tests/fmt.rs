//! Tests of `msrgate fmt`, most of them of the files that `fmt --write` leaves.

use std::fs::{self, Permissions};
use std::io::Write as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::Path;
use std::process::{Command, Output, Stdio};

const UNTIDY: &str =
    "default=\"deny\"\npolicy=1 # version\n[msrs]\n0x10={read=\"allow\",write=\"allow\"}\n";
const TIDY: &str = "policy  = 1  # version\ndefault = \"deny\"\n\n[msrs]\n0x10 = \"rw\"\n";

fn fmt(arguments: &[&str], file: &Path) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_msrgate"));
    let command = command.arg("fmt").args(arguments).arg(file);
    command.output().expect("msrgate runs")
}

#[test]
fn fmt_write_to_symbolic_link_keeps_link_and_mode_of_its_target() {
    let folder = tempfile::tempdir().expect("a folder");
    let (file, link) = (folder.path().join("a.toml"), folder.path().join("b.toml"));
    fs::write(&file, UNTIDY).expect("written");
    // With the usual umask, a new file would get fewer rights than this mode grants.
    fs::set_permissions(&file, Permissions::from_mode(0o662)).expect("set");
    symlink("a.toml", &link).expect("a link");

    assert_eq!(fmt(&["--check"], &link).status.code(), Some(1));
    assert_eq!(fs::read_to_string(&file).expect("read"), UNTIDY);
    assert_eq!(fmt(&["--write"], &link).status.code(), Some(0));
    assert_eq!(fs::read_to_string(&file).expect("read"), TIDY);
    assert!(fs::symlink_metadata(&link).expect("a link").is_symlink());
    let mode = fs::metadata(&file).expect("a file").permissions().mode();
    assert_eq!(mode & 0o7777, 0o662);
    assert_eq!(fmt(&["--check"], &link).status.code(), Some(0));
    // The folder has only the file and the link: no temporary file is left.
    assert_eq!(fs::read_dir(folder.path()).expect("a folder").count(), 2);
}

#[test]
fn fmt_write_changes_neither_file_in_canonical_form_nor_file_with_mistakes() {
    for (text, code) in [(TIDY, 0), ("policy = 1\n[msrs]\nnothing = \"rw\"\n", 1)] {
        let mut file = tempfile::NamedTempFile::new().expect("a file");
        file.write_all(text.as_bytes()).expect("written");
        let inode = |path: &Path| fs::metadata(path).expect("a file").ino();
        let before = inode(file.path());
        assert_eq!(fmt(&["--write"], file.path()).status.code(), Some(code));
        assert_eq!(inode(file.path()), before);
        assert_eq!(fs::read_to_string(file.path()).expect("read"), text);
    }
}

/// If one file has mistakes, `fmt --write` still writes the other files, and exits with 1.
#[test]
fn fmt_write_still_writes_other_files_if_one_file_has_mistakes() {
    let folder = tempfile::tempdir().expect("a folder");
    let [wrong, untidy] = ["wrong.toml", "untidy.toml"].map(|name| folder.path().join(name));
    fs::write(&wrong, "policy = 2\n").expect("written");
    fs::write(&untidy, UNTIDY).expect("written");
    let output = fmt(&["--write", &wrong.to_string_lossy()], &untidy);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("version 2 of the policy language"));
    assert_eq!(fs::read_to_string(&untidy).expect("read"), TIDY);
}

/// If one file cannot be read, `fmt --write` still writes the other files, and exits with 2. The
/// JSON lists each file.
#[test]
fn fmt_write_still_writes_other_files_if_one_file_is_missing() {
    let folder = tempfile::tempdir().expect("a folder");
    let [a, missing, wrong, b] =
        ["a.toml", "missing.toml", "wrong.toml", "b.toml"].map(|name| folder.path().join(name));
    fs::write(&wrong, "policy = 2\n").expect("written");
    for format in ["json", "text"] {
        fs::write(&a, UNTIDY).expect("written");
        fs::write(&b, UNTIDY).expect("written");
        let names = [&a, &missing, &wrong].map(|one| one.to_string_lossy());
        let output = fmt(
            &[
                "--write", "--format", format, &names[0], &names[1], &names[2],
            ],
            &b,
        );
        assert_eq!(output.status.code(), Some(2));
        let talk = String::from_utf8_lossy(&output.stderr);
        assert!(
            talk.contains("missing.toml: there is no such file"),
            "{talk}"
        );
        for file in [&a, &b] {
            assert_eq!(fs::read_to_string(file).expect("read"), TIDY);
        }
        if format == "text" {
            continue;
        }
        let report: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
        assert_eq!(report["ok"], false);
        let files = report["files"].as_array().expect("a list");
        let of = |one: &serde_json::Value| {
            let mistakes = one["mistakes"].as_array().map_or(0, Vec::len);
            (
                one["written"] == true,
                mistakes,
                one["error"]["kind"] == "input",
            )
        };
        let wanted = [
            (true, 0, false),
            (false, 0, true),
            (false, 1, false),
            (true, 0, false),
        ];
        assert_eq!(files.iter().map(of).collect::<Vec<_>>(), wanted);
    }
}

/// `fmt --write` refuses a path that leads to an open descriptor, such as `/dev/stdin`: if `fmt` replaced
/// the file, the process that opened the descriptor would still have the old file.
#[test]
fn fmt_write_refuses_dev_stdin_and_other_paths_to_open_descriptor() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("a.toml");
    fs::write(&file, UNTIDY).expect("written");
    for name in ["/dev/stdin", "/dev/fd/0", "/proc/self/fd/0", "-"] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_msrgate"));
        command.args(["fmt", "--write", name]);
        command.stdin(fs::File::open(&file).expect("a file"));
        let output = command.output().expect("msrgate runs");
        assert_eq!(output.status.code(), Some(2), "{name}");
        let talk = String::from_utf8_lossy(&output.stderr);
        assert!(
            talk.contains("is not a file, so fmt cannot write it"),
            "{talk}"
        );
        assert_eq!(fs::read_to_string(&file).expect("read"), UNTIDY);
    }
}

#[test]
fn fmt_of_policy_from_standard_input_prints_it_to_standard_output() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_msrgate"));
    let command = command.args(["fmt", "-"]).stdin(Stdio::piped());
    let mut child = command
        .stdout(Stdio::piped())
        .spawn()
        .expect("msrgate runs");
    let mut input = child.stdin.take().expect("a pipe");
    input.write_all(UNTIDY.as_bytes()).expect("written");
    drop(input);
    let output = child.wait_with_output().expect("its output");
    assert_eq!(String::from_utf8_lossy(&output.stdout), TIDY);
}
