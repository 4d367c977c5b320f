use std::fs::FileTimes;
use std::os::unix::fs::{chown, symlink};

use super::*;
use crate::files::Place;

/// Opens a file by `name` and reads its metadata, as `fmt` does.
fn opened(name: &Path) -> Box<Opened> {
    let file = File::open(name).expect("a file");
    match Place::of_file(name, &file) {
        Place::File { opened, .. } => opened.expect("a regular file"),
        place => unreachable!("{place:?}"),
    }
}

/// If another process changes, replaces or removes the file after it was read, `replace` returns an
/// error, and leaves everything as it is.
#[test]
fn replace_does_not_write_file_that_was_changed_after_it_was_read() {
    type Change = fn(&Path);
    let changes: [(&str, Change); 5] = [
        ("an editor saved the file in place", |file| {
            fs::write(file, "new").expect("written");
            // File times are coarse, so the new time of modification may equal the old one; the test sets
            // another.
            let times = FileTimes::new().set_modified(std::time::UNIX_EPOCH);
            let file = OpenOptions::new().write(true).open(file).expect("a file");
            file.set_times(times).expect("set");
        }),
        ("the file got longer", |file| {
            fs::write(file, "longer").expect("written");
        }),
        ("an editor replaced the file by rename", |file| {
            let new = file.with_file_name("new");
            fs::write(&new, "old").expect("written");
            fs::rename(new, file).expect("renamed");
        }),
        ("a link took the place of the file", |file| {
            fs::remove_file(file).expect("removed");
            symlink("victim", file).expect("a link");
        }),
        ("the file was removed", |file| {
            fs::remove_file(file).expect("removed");
        }),
    ];
    for (what, change) in changes {
        let folder = tempfile::tempdir().expect("a folder");
        let [file, victim] = ["file", "victim"].map(|name| folder.path().join(name));
        fs::write(&file, "old").expect("written");
        fs::write(&victim, "victim").expect("written");
        let read = opened(&file);
        change(&file);
        let before = fs::read_to_string(&file).ok();
        let refused = replace(&file, &read, b"formatted");
        let refused = refused.expect_err(what).to_string();
        assert!(
            refused.contains("another process changed the file while"),
            "{what}: {refused}"
        );
        assert_eq!(fs::read_to_string(&file).ok(), before, "{what}");
        assert_eq!(fs::read_to_string(&victim).expect("read"), "victim");
        let left = fs::read_dir(folder.path()).expect("a folder").count();
        assert_eq!(left, 1 + usize::from(before.is_some()), "{what}");
    }
}

/// Two commands may work on one new file at once: the second one does not replace what the first one has written.
#[test]
fn create_of_file_that_another_process_has_made_is_refused_and_changes_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    let [file, link] = ["file", "link"].map(|name| folder.path().join(name));
    symlink("file", &link).expect("a link");
    create(&link, b"first").expect("written");
    assert_eq!(fs::read_to_string(&file).expect("read"), "first");
    for path in [&link, &file] {
        let refused = create(path, b"second").expect_err("it exists").to_string();
        assert!(
            refused.contains("another process made the file while"),
            "{refused}"
        );
        assert_eq!(fs::read_to_string(&file).expect("read"), "first");
    }
    let left = fs::read_dir(folder.path()).expect("a folder").count();
    assert_eq!(left, 2, "no temporary file is left");
}

#[test]
fn replace_writes_file_that_was_read_even_if_link_now_leads_elsewhere() {
    let folder = tempfile::tempdir().expect("a folder");
    let [file, victim, link] = ["file", "victim", "link"].map(|name| folder.path().join(name));
    fs::write(&file, "old").expect("written");
    fs::write(&victim, "victim").expect("written");
    symlink("file", &link).expect("a link");
    let read = opened(&link);
    fs::remove_file(&link).expect("removed");
    symlink("victim", &link).expect("a link");
    replace(&link, &read, b"formatted").expect("written");
    assert_eq!(fs::read_to_string(&file).expect("read"), "formatted");
    assert_eq!(fs::read_to_string(&victim).expect("read"), "victim");
}

/// If the folder's owner replaces the temporary file's name by a link, owner and mode still go to the
/// temporary file, and not to the link's target.
#[test]
fn replace_sets_owner_and_mode_of_open_temporary_file_not_of_file_now_at_its_path() {
    let folder = tempfile::tempdir().expect("a folder");
    let [old, victim] = ["old", "victim"].map(|name| folder.path().join(name));
    fs::write(&old, "").expect("written");
    fs::set_permissions(&old, Permissions::from_mode(0o606)).expect("set");
    // Only root can give the file away; every user can set its mode.
    let is_root = chown(&old, Some(12345), Some(12345)).is_ok();
    fs::write(&victim, "").expect("written");
    fs::set_permissions(&victim, Permissions::from_mode(0o600)).expect("set");
    let before = fs::metadata(&victim).expect("a file");

    let file = unnamed(folder.path(), PRIVATE).expect("a file");
    let name = folder.path().join("temporary");
    link(&file, &name).expect("a name");
    fs::remove_file(&name).expect("removed");
    symlink("victim", &name).expect("a link");
    let access = Access::of_path(&old, &fs::metadata(&old).expect("a file")).expect("its access");
    access.give(&file).expect("done");

    let of = |one: &Metadata| (one.uid(), one.gid(), one.mode());
    let after = fs::metadata(&victim).expect("a file");
    assert_eq!(of(&after), of(&before));
    let given = file.metadata().expect("a file");
    assert_eq!(given.mode() & 0o7777, 0o606);
    assert_eq!(given.uid() == 12345, is_root);
}
