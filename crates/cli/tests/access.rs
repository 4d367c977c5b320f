//! Tests of a file's access rights after `fmt --write` and `compile -o` have replaced it.
//!
//! Some tests run the command as another user, which only root can do. `MSRGATE_REQUIRE=root` makes a
//! skipped test fail.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use rustix::fs::{XattrFlags, lgetxattr, setxattr};
use tempfile::TempDir;

const UNTIDY: &str = "default=\"deny\"\npolicy=1\n[msrs]\n0x10={read=\"allow\",write=\"allow\"}\n";

const OWNER: u32 = 1001;
const CALLER: u32 = 1002;
const TEAM: u32 = 2000;

/// The two commands that replace a file: `fmt --write` and `compile -o`.
#[derive(Clone, Copy, Debug)]
enum Writer {
    Fmt,
    Compile,
}

const WRITERS: [Writer; 2] = [Writer::Fmt, Writer::Compile];

/// A file to be replaced, in a folder where every user may make files.
struct Place {
    folder: TempDir,
    file: PathBuf,
}

impl Place {
    fn new(mode: u32) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let all = Permissions::from_mode(0o777);
        fs::set_permissions(folder.path(), all).expect("set");
        let file = folder.path().join("p.toml");
        fs::write(&file, UNTIDY).expect("written");
        fs::write(folder.path().join("from.toml"), UNTIDY).expect("written");
        fs::set_permissions(&file, Permissions::from_mode(mode)).expect("set");
        Self { folder, file }
    }

    /// Makes a file that belongs to [`OWNER`], another user than the caller.
    fn of_owner(group: u32, mode: u32) -> Self {
        let place = Self::new(mode);
        chown(&place.file, Some(OWNER), Some(group)).expect("root");
        // A change of the owner clears setuid.
        fs::set_permissions(&place.file, Permissions::from_mode(mode)).expect("set");
        place
    }

    fn run(&self, mut command: Command, writer: Writer) -> Output {
        match writer {
            Writer::Fmt => command.args(["fmt", "--write", "p.toml"]),
            Writer::Compile => command.args(["compile", "from.toml", "-o", "p.toml"]),
        };
        let before = fs::metadata(&self.file).expect("a file").ino();
        let output = command.current_dir(self.folder.path()).output();
        let output = output.expect("the command runs");
        assert_eq!(output.status.code(), Some(0), "{writer:?}: {output:?}");
        assert_ne!(fs::metadata(&self.file).expect("a file").ino(), before);
        output
    }

    /// Returns the file's owner, group, and mode.
    fn access(&self) -> (u32, u32, u32) {
        let metadata = fs::metadata(&self.file).expect("a file");
        (metadata.uid(), metadata.gid(), metadata.mode() & 0o7777)
    }
}

fn msrgate() -> Command {
    Command::new(env!("CARGO_BIN_EXE_msrgate"))
}

/// Returns the command as the user [`CALLER`] runs it. The user is in the group of the same number, and in
/// the groups `groups`.
fn as_caller(groups: &[u32]) -> Command {
    let mut command = Command::new("setpriv");
    command.arg(format!("--reuid={CALLER}"));
    command.arg(format!("--regid={CALLER}"));
    let groups: Vec<_> = groups.iter().map(u32::to_string).collect();
    match groups[..] {
        [] => command.arg("--clear-groups"),
        _ => command.arg(format!("--groups={}", groups.join(","))),
    };
    command.arg(env!("CARGO_BIN_EXE_msrgate"));
    command
}

/// Returns true if the test can run the command as another user; otherwise prints that the test is
/// skipped.
fn can_become_others() -> bool {
    let version = as_caller(&[]).arg("--version").output();
    let can = version.is_ok_and(|output| output.status.success());
    if !can {
        let required = std::env::var("MSRGATE_REQUIRE").unwrap_or_default();
        let is_required = required.split(',').any(|one| one == "root");
        assert!(!is_required, "MSRGATE_REQUIRE=root, but this is not root");
        eprintln!("SKIPPED: not root, or no setpriv(1), or msrgate is where others cannot run it");
    }
    can
}

#[test]
fn file_replaced_by_fmt_or_compile_loses_setuid_setgid_and_sticky_bits() {
    for writer in WRITERS {
        let place = Place::new(0o7755);
        place.run(msrgate(), writer);
        assert_eq!(place.access().2, 0o755, "{writer:?}");
    }
}

/// A file that no user may write to is protected by its owner. No command replaces it, not even for root, although its
/// folder would permit that. One permission to write, whose ever it is, is enough.
#[test]
fn protected_file_is_not_replaced() {
    let events =
        "{\"schema\":1,\"msr\":\"0x1b\",\"access\":\"read\",\"action\":\"deny\",\"time_ns\":1}\n";
    let commands: [&[&str]; 4] = [
        &["fmt", "--write", "p.toml"],
        &["compile", "from.toml", "-o", "p.toml"],
        &[
            "learn", "--merge", "p.toml", "-o", "p.toml", "--from", "events",
        ],
        &["review", "p.toml", "events", "--accept"],
    ];
    for arguments in commands {
        for (mode, is_protected) in [
            (0o444, true),
            (0o400, true),
            (0o555, true),
            (0o644, false),
            (0o464, false),
            (0o446, false),
        ] {
            let place = Place::new(mode);
            fs::write(place.folder.path().join("events"), events).expect("written");
            let before = fs::metadata(&place.file).expect("a file").ino();
            let mut command = msrgate();
            command.args(arguments).current_dir(place.folder.path());
            let output = command.output().expect("the command runs");
            let said = String::from_utf8_lossy(&output.stderr);
            let is_same = fs::metadata(&place.file).expect("a file").ino() == before;
            assert_eq!(is_same, is_protected, "{arguments:?}, {mode:o}: {output:?}");
            assert_eq!(
                said.contains("p.toml: cannot be written: the file is protected: its mode permits no user to write to it"),
                is_protected,
                "{arguments:?}, {mode:o}: {output:?}"
            );
            if is_protected {
                assert_eq!(output.status.code(), Some(2), "{arguments:?}: {output:?}");
                assert_eq!(fs::read_to_string(&place.file).expect("read"), UNTIDY);
                assert_eq!(place.access().2, mode);
            }
        }
    }
}

#[test]
fn fmt_write_of_protected_file_in_canonical_form_succeeds() {
    let place = Place::new(0o644);
    place.run(msrgate(), Writer::Fmt);
    fs::set_permissions(&place.file, Permissions::from_mode(0o444)).expect("set");
    let mut command = msrgate();
    command.args(["fmt", "--write", "p.toml"]);
    let output = command.current_dir(place.folder.path()).output();
    let output = output.expect("the command runs");
    assert_eq!(output.status.code(), Some(0), "{output:?}");
}

#[test]
fn setuid_file_of_another_user_loses_setuid_bit_when_replaced() {
    if !can_become_others() {
        return;
    }
    for writer in WRITERS {
        let place = Place::of_owner(OWNER, 0o6755);
        place.run(as_caller(&[]), writer);
        assert_eq!(place.access(), (CALLER, CALLER, 0o755), "{writer:?}");
        let place = Place::of_owner(OWNER, 0o6755);
        place.run(msrgate(), writer);
        assert_eq!(place.access(), (OWNER, OWNER, 0o755), "{writer:?}");
    }
}

#[test]
fn replaced_file_keeps_its_group_and_group_rights_only_if_caller_is_in_group() {
    if !can_become_others() {
        return;
    }
    for writer in WRITERS {
        let place = Place::of_owner(TEAM, 0o664);
        let output = place.run(as_caller(&[TEAM]), writer);
        assert_eq!(place.access(), (CALLER, TEAM, 0o664), "{writer:?}");
        assert!(output.stderr.is_empty(), "{output:?}");
        for (before, after) in [(0o664, 0o644), (0o606, 0o600), (0o666, 0o666)] {
            let place = Place::of_owner(TEAM, before);
            let output = place.run(as_caller(&[]), writer);
            assert_eq!(place.access(), (CALLER, CALLER, after), "{writer:?}");
            let said = String::from_utf8(output.stderr).expect("text");
            assert!(
                said.contains("msrgate could not restore the group 2000 of p.toml"),
                "{said}"
            );
        }
    }
    // The caller has no right to write to this file, nor even to read it.
    let place = Place::of_owner(TEAM, 0o660);
    place.run(as_caller(&[]), Writer::Compile);
    assert_eq!(place.access(), (CALLER, CALLER, 0o600));
}

/// Returns an ACL with rights of the owner, a user, the owning group, the mask and others.
fn acl(user: u32, rights: [u16; 5]) -> Vec<u8> {
    let entry = |tag: u16, rights: u16, id: u32| {
        let (tag, rights) = (tag.to_le_bytes(), rights.to_le_bytes());
        [&tag[..], &rights, &id.to_le_bytes()].concat()
    };
    let none = u32::MAX;
    let tags = [(1, none), (2, user), (4, none), (0x10, none), (0x20, none)];
    let entries = tags.into_iter().zip(rights);
    let entries = entries.map(|((tag, id), rights)| entry(tag, rights, id));
    [2u32.to_le_bytes().to_vec()]
        .into_iter()
        .chain(entries)
        .flatten()
        .collect()
}

const ACL: &str = "system.posix_acl_access";
const ACL_OF_NEW_FILES: &str = "system.posix_acl_default";

/// Sets an ACL. If the file system supports no ACLs, prints that the test is skipped, and returns false.
fn has_acl(path: &Path, name: &str, acl: &[u8]) -> bool {
    let set = setxattr(path, name, acl, XattrFlags::empty());
    if let Err(error) = set {
        eprintln!("SKIPPED: no ACLs on the file system of temporary files: {error}");
    }
    set.is_ok()
}

fn acl_of(path: &Path) -> Option<Vec<u8>> {
    let mut bytes = vec![0; 4096];
    let length = lgetxattr(path, ACL, &mut bytes[..]).ok()?;
    bytes.truncate(length);
    Some(bytes)
}

#[test]
fn file_replaced_by_fmt_or_compile_keeps_its_acl() {
    for writer in WRITERS {
        let place = Place::new(0o600);
        let wanted = acl(1003, [6, 6, 0, 6, 0]);
        if !has_acl(&place.file, ACL, &wanted) {
            return;
        }
        place.run(msrgate(), writer);
        assert_eq!(acl_of(&place.file), Some(wanted), "{writer:?}");
        assert_eq!(place.access().2, 0o660, "{writer:?}");
    }
}

#[test]
fn acl_of_replaced_file_that_loses_owner_or_group_gives_no_user_more_rights() {
    if !can_become_others() {
        return;
    }
    for writer in WRITERS {
        for (groups, before, after) in [
            (&[TEAM][..], [6, 6, 4, 6, 4], [6, 6, 4, 6, 4]),
            (&[], [6, 6, 4, 6, 4], [6, 6, 0, 6, 4]),
            (&[], [6, 6, 0, 6, 4], [6, 6, 0, 6, 0]),
        ] {
            let place = Place::of_owner(TEAM, 0o644);
            // The caller can read the file as the user whom the ACL names.
            if !has_acl(&place.file, ACL, &acl(CALLER, before)) {
                return;
            }
            place.run(as_caller(groups), writer);
            assert_eq!(acl_of(&place.file), Some(acl(CALLER, after)), "{writer:?}");
        }
    }
}

/// If a folder has a default ACL for new files, a file without an ACL still has no ACL after it was
/// replaced.
#[test]
fn replaced_file_without_acl_gets_none_from_default_acl_of_folder() {
    for writer in WRITERS {
        let place = Place::new(0o660);
        let of_folder = acl(1003, [6, 6, 0, 6, 0]);
        if !has_acl(place.folder.path(), ACL_OF_NEW_FILES, &of_folder) {
            return;
        }
        place.run(msrgate(), writer);
        assert_eq!(acl_of(&place.file), None, "{writer:?}");
        assert_eq!(place.access().2, 0o660, "{writer:?}");
    }
}

/// If the replaced file is one of several hard links, it becomes a file of its own, as with most
/// editors. The command prints a line about this.
#[test]
fn message_says_that_replaced_file_is_no_longer_a_hard_link() {
    for writer in WRITERS {
        let place = Place::new(0o644);
        let other = place.folder.path().join("other.toml");
        fs::hard_link(&place.file, &other).expect("a link");
        let output = place.run(msrgate(), writer);
        let said = String::from_utf8(output.stderr).expect("text");
        assert!(said.contains("p.toml was one of 2 hard links"), "{said}");
        assert_eq!(fs::read_to_string(other).expect("read"), UNTIDY);
        // The file has only one name now.
        fs::write(&place.file, UNTIDY).expect("written");
        assert!(place.run(msrgate(), writer).stderr.is_empty());
    }
}

/// In a user namespace, stat(2) gives the same number for all groups that are unknown there. So a new file
/// in a setgid folder may seem to have the group of the old file, but really has the group of the folder.
/// The command treats the group as lost.
#[test]
fn replaced_file_loses_group_that_has_no_id_in_user_namespace() {
    if !can_become_others() {
        return;
    }
    let in_namespace = || {
        let mut command = Command::new("unshare");
        command.args(["-r", env!("CARGO_BIN_EXE_msrgate")]);
        command
    };
    if !in_namespace()
        .arg("--version")
        .output()
        .is_ok_and(|output| output.status.success())
    {
        eprintln!("SKIPPED: no user namespace can be made here");
        return;
    }
    for writer in WRITERS {
        let place = Place::new(0o640);
        chown(&place.file, None, Some(TEAM)).expect("root");
        chown(place.folder.path(), None, Some(TEAM + 1)).expect("root");
        let setgid = Permissions::from_mode(0o2777);
        fs::set_permissions(place.folder.path(), setgid).expect("set");
        let output = place.run(in_namespace(), writer);
        let (_, group, mode) = place.access();
        assert_eq!((group, mode), (TEAM + 1, 0o600), "{writer:?}");
        let said = String::from_utf8(output.stderr).expect("text");
        assert!(
            said.contains("msrgate could not restore the group"),
            "{said}"
        );
    }
}
