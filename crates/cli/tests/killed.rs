//! Tests of the files that a command leaves if a signal ends it while it writes one.

#![expect(
    clippy::unwrap_used,
    reason = "the functions that several tests share stop where a test would"
)]

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use msrgate_testing::host::say;

/// A library whose `fsync` sends the process the signal in `SIGNAL`. The new file is then complete, and has not
/// taken the old one's place.
const LIBRARY: &str = "#include <signal.h>\n#include <stdlib.h>\n#include <unistd.h>\n\
    int fsync(int file) { kill(getpid(), atoi(getenv(\"SIGNAL\"))); return 0; }\n";

const UNTIDY: &str = "policy=1\ndefault=\"deny\"\n[msrs]\n0x10={read=\"allow\",write=\"allow\"}\n";

const EVENT: &str = "{\"schema\":1,\"time_ns\":1,\"vcpu\":0,\"msr\":\"0x277\",\"access\":\"write\",\"reason\":\"filter\",\"action\":\"deny\"}\n";

/// The commands that write a file, and the file.
const WRITERS: [(&[&str], &str); 6] = [
    (&["fmt", "--write", "p.toml"], "p.toml"),
    (&["review", "p.toml", "events", "--accept"], "p.toml"),
    (&["compile", "p.toml", "-o", "old"], "old"),
    (&["compile", "p.toml", "-o", "new"], "new"),
    (&["learn", "--from", "events", "-o", "new"], "new"),
    (
        &[
            "learn", "--from", "events", "--merge", "p.toml", "-o", "p.toml",
        ],
        "p.toml",
    ),
];

/// Compiles the library into the folder, and returns its path.
fn library(folder: &Path) -> PathBuf {
    let mut compiler = Command::new("cc");
    compiler.args(["-shared", "-fPIC", "-x", "c", "-o", "fsync.so", "-"]);
    let mut compiler = compiler
        .current_dir(folder)
        .stdin(Stdio::piped())
        .spawn()
        .expect("there is a C compiler");
    let mut source = compiler.stdin.take().unwrap();
    source.write_all(LIBRARY.as_bytes()).unwrap();
    drop(source);
    assert!(compiler.wait().unwrap().success());
    folder.join("fsync.so")
}

/// The text of each file in a folder.
type Files = BTreeMap<String, String>;

fn files(folder: &Path) -> Files {
    let entries = fs::read_dir(folder).unwrap().map(Result::unwrap);
    let named = entries.map(|entry| {
        let name = entry.file_name().into_string().unwrap();
        let bytes = fs::read(entry.path()).unwrap();
        (name, String::from_utf8_lossy(&bytes).into_owned())
    });
    named.collect()
}

/// Runs each writer in a folder of its own, and sends it the signal. Calls `check` with the writer's file and with the
/// folder's files before and after.
fn send(signal: i32, check: impl Fn(&str, Files, Files)) {
    let built = tempfile::tempdir().unwrap();
    let library = library(built.path());
    for (arguments, file) in WRITERS {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        for (name, text) in [("p.toml", UNTIDY), ("events", EVENT), ("old", "old")] {
            fs::write(folder.join(name), text).unwrap();
        }
        let before = files(folder);
        let mut command = Command::new(env!("CARGO_BIN_EXE_msrgate"));
        command.args(arguments).current_dir(folder);
        command
            .env("LD_PRELOAD", &library)
            .env("SIGNAL", signal.to_string());
        let output = command.output().unwrap();
        let ended = output.status.signal();
        assert_eq!(ended, Some(signal), "{arguments:?}: {output:?}");
        check(file, before, files(folder));
    }
}

#[test]
fn command_that_is_killed_leaves_old_file_and_no_other() {
    let folder = tempfile::tempdir().unwrap();
    let mut unnamed = OpenOptions::new();
    unnamed.write(true).custom_flags(libc::O_TMPFILE);
    if let Err(error) = unnamed.open(folder.path()) {
        say(&format!(
            "SKIPPED: the file system of temporary files has no unnamed files: {error}"
        ));
        return;
    }
    send(libc::SIGKILL, |file, before, after| {
        assert_eq!(before, after, "{file}");
    });
}

#[test]
fn command_that_is_terminated_writes_whole_file_first_and_leaves_no_other() {
    send(libc::SIGTERM, |file, mut before, mut after| {
        let new = after.remove(file).expect(file);
        assert_ne!(before.remove(file), Some(new), "{file}");
        assert_eq!(before, after, "{file}");
    });
}
