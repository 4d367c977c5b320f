use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;

use super::*;

/// Only the owner can read a new file, because the file may hold values and RIP. A log file that exists
/// already keeps its mode.
#[test]
fn append_creates_log_file_for_owner_only_and_keeps_mode_of_existing_file() {
    let folder = tempfile::tempdir().unwrap();
    let (old, new) = (folder.path().join("old"), folder.path().join("new"));
    fs::write(&old, "").unwrap();
    fs::set_permissions(&old, Permissions::from_mode(0o640)).unwrap();
    let mode = |path: &Path| {
        LogFile::append(path).unwrap().write_all(b"line\n").unwrap();
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    };
    assert_eq!((mode(&old), mode(&new)), (0o640, 0o600));
}

/// A log file with a relative path stays the same file after a daemon has changed its directory: the path is
/// made absolute at once.
#[test]
fn log_file_append_makes_relative_path_absolute_at_once() {
    let folder = tempfile::tempdir_in(".").unwrap();
    let relative = Path::new(folder.path().file_name().unwrap()).join("events");
    let file = LogFile::append(&relative).unwrap();
    assert_eq!(file.path, std::env::current_dir().unwrap().join(relative));
}

/// A line that was cut when SIGKILL ended its writer stays a broken line of its own: no later line is joined
/// to it.
#[test]
fn log_line_cut_by_kill_is_ended_by_next_append() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("events");
    for (before, after) in [
        ("", "new\n"),
        ("whole\n", "whole\nnew\n"),
        ("whole\ncu", "whole\ncu\nnew\n"),
    ] {
        fs::write(&path, before).unwrap();
        LogFile::append(&path).unwrap().write_all(b"new\n").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), after);
    }
}

/// After logrotate has renamed the file, a request of the `Reopener` makes the next line open the file that
/// the path now names.
#[test]
fn reopener_request_reopens_log_file_at_next_line() {
    let folder = tempfile::tempdir().unwrap();
    let (path, aside) = (folder.path().join("events"), folder.path().join("events.1"));
    let mut file = LogFile::append(&path).unwrap();
    let reopener = file.reopener();
    file.write_all(b"one\n").unwrap();
    fs::rename(&path, &aside).unwrap();
    file.write_all(b"two\n").unwrap();
    // The new file contains the beginning of a line: another process was killed while it wrote that line.
    fs::write(&path, "cu").unwrap();
    reopener.request();
    assert!(reopener.is_pending());
    file.write_all(b"three\n").unwrap();
    assert!(!reopener.is_pending());
    let read = |path: &Path| fs::read_to_string(path).unwrap();
    assert_eq!(
        (read(&aside), read(&path)),
        ("one\ntwo\n".into(), "cu\nthree\n".into())
    );
}

#[test]
fn failed_reopen_keeps_old_log_file_and_pending_request() {
    let folder = tempfile::tempdir().unwrap();
    let (path, aside) = (folder.path().join("events"), folder.path().join("events.1"));
    let mut file = LogFile::append(&path).unwrap();
    fs::rename(&path, &aside).unwrap();
    fs::create_dir(&path).unwrap();
    file.reopener().request();
    file.write_all(b"one\n").unwrap();
    assert!(file.reopener().is_pending());
    fs::remove_dir(&path).unwrap();
    file.write_all(b"two\n").unwrap();
    assert_eq!(fs::read_to_string(&aside).unwrap(), "one\n");
    assert_eq!(fs::read_to_string(&path).unwrap(), "two\n");
}

/// If a full disk has taken only the beginning of a line, the next write ends that line first.
#[test]
fn log_line_cut_by_full_disk_is_ended_by_next_write() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("events");
    let mut file = LogFile::append(&path).unwrap();
    file.file.write_all(b"cu").unwrap();
    file.is_cut = true;
    file.write_all(b"one\n").unwrap();
    file.write_all(b"two\n").unwrap();
    assert_eq!(fs::read_to_string(&path).unwrap(), "cu\none\ntwo\n");
}

/// A device file has the length 0, so it has no line to end. If the device is full, the write returns an
/// error.
#[test]
fn log_write_to_full_device_returns_storage_full() {
    let mut null = LogFile::append(Path::new("/dev/null")).unwrap();
    null.write_all(b"line\n").unwrap();
    let Ok(mut full) = LogFile::append(Path::new("/dev/full")) else {
        return;
    };
    let error = full.write_all(b"line\n").unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::StorageFull);
}
