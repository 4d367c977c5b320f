//! Where results and talk go when nobody can take them.

use std::fs::File;
use std::io::pipe;
use std::process::{Command, Stdio};

/// What a command exits with whose output goes there. A panic would be 101.
fn code(arguments: &[&str], out: impl Into<Stdio>, err: impl Into<Stdio>) -> Option<i32> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_msrgate"));
    command.args(arguments).stdin(Stdio::null());
    let status = command.stdout(out).stderr(err).status();
    status.expect("the command runs").code()
}

/// A file that has room for nothing.
fn full() -> File {
    File::options()
        .write(true)
        .open("/dev/full")
        .expect("/dev/full")
}

/// A pipe that nobody reads.
fn broken() -> Stdio {
    let (reader, writer) = pipe().expect("a pipe");
    drop(reader);
    writer.into()
}

#[test]
fn results_that_cannot_be_written_are_trouble() {
    for arguments in [&["policies"][..], &["msr", "0x8b", "--format", "json"]] {
        assert_eq!(code(arguments, full(), Stdio::null()), Some(2));
        assert_eq!(code(arguments, full(), full()), Some(2));
    }
}

#[test]
fn a_reader_that_has_seen_enough_is_no_trouble() {
    for arguments in [&["policies"][..], &["explain", "linux-boot", "0x0..=0xff"]] {
        assert_eq!(code(arguments, broken(), Stdio::null()), Some(0));
    }
}

/// The exit code is the answer, whether or not anyone hears why.
#[test]
fn talk_that_cannot_be_written_changes_no_answer() {
    for (arguments, wanted) in [
        (&["check", "/nonexistent"][..], 2),
        (&["check", "/dev/null"], 1),
        (&["msr", "nothing-is-called-this"], 1),
    ] {
        assert_eq!(code(arguments, Stdio::null(), full()), Some(wanted));
        assert_eq!(code(arguments, Stdio::null(), broken()), Some(wanted));
    }
}
