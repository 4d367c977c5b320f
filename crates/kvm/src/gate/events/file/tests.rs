use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;

use super::*;

/// Values and RIP may be in it.
#[test]
fn new_file_is_its_owners_alone_and_an_old_one_keeps_its_mode() {
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

/// A daemon changes its directory, and its file stays where it is.
#[test]
fn path_is_meant_from_where_it_was_given() {
    let folder = tempfile::tempdir_in(".").unwrap();
    let relative = Path::new(folder.path().file_name().unwrap()).join("events");
    let file = LogFile::append(&relative).unwrap();
    assert_eq!(file.path, std::env::current_dir().unwrap().join(relative));
}

/// What a kill has cut short stays one broken line, and no line of ours is lost in it.
#[test]
fn cut_line_is_ended_at_open() {
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

/// logrotate renames the file, and asks for the new one.
#[test]
fn reopened_file_takes_the_next_line() {
    let folder = tempfile::tempdir().unwrap();
    let (path, aside) = (folder.path().join("events"), folder.path().join("events.1"));
    let mut file = LogFile::append(&path).unwrap();
    let reopener = file.reopener();
    file.write_all(b"one\n").unwrap();
    fs::rename(&path, &aside).unwrap();
    file.write_all(b"two\n").unwrap();
    // Another process has begun the new file, and was killed.
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
fn old_file_goes_on_until_the_new_one_can_be_opened() {
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

/// A full disk takes the beginning of a line.
#[test]
fn line_that_a_full_disk_cut_is_ended_by_the_next() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("events");
    let mut file = LogFile::append(&path).unwrap();
    file.file.write_all(b"cu").unwrap();
    file.is_cut = true;
    file.write_all(b"one\n").unwrap();
    file.write_all(b"two\n").unwrap();
    assert_eq!(fs::read_to_string(&path).unwrap(), "cu\none\ntwo\n");
}

/// What is no file has no length, and nothing to end.
#[test]
fn device_takes_lines_or_says_that_it_is_full() {
    let mut null = LogFile::append(Path::new("/dev/null")).unwrap();
    null.write_all(b"line\n").unwrap();
    let Ok(mut full) = LogFile::append(Path::new("/dev/full")) else {
        return;
    };
    let error = full.write_all(b"line\n").unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::StorageFull);
}
