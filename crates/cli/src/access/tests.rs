use super::*;

fn access(mode: u32) -> Access {
    Access {
        owner: 0,
        group: 0,
        mode,
        acl: None,
    }
}

#[test]
fn mode_of_new_file_never_has_setuid_setgid_or_sticky_bit() {
    for (mode, wanted) in [(0o100_644, 0o644), (0o106_755, 0o755), (0o101_777, 0o777)] {
        assert_eq!(access(mode).rights(Given::Whole), wanted, "{mode:o}");
    }
}

/// If a file's group could not be kept, no user has more rights than before: members of the old group now
/// count as others, and members of the new group counted as others before.
#[test]
fn mode_of_file_that_lost_its_group_gives_no_user_more_rights_than_before() {
    for mode in 0..=RIGHTS {
        let rights = access(mode).rights(Given::WithoutGroup);
        let [old, new] = [mode, rights].map(|mode| [mode >> 6, mode >> 3 & 0o7, mode & 0o7]);
        assert_eq!(new[0], old[0], "{mode:o}");
        for new in &new[1..] {
            assert_eq!(*new, old[1] & old[2], "{mode:o}");
        }
    }
    assert_eq!(access(0o100_660).rights(Given::WithoutGroup), 0o600);
    assert_eq!(access(0o100_664).rights(Given::WithoutGroup), 0o644);
}

/// Returns an ACL with these entries: tag, access rights, and a user or group ID.
fn acl(entries: &[(u16, u16, u32)]) -> Acl {
    let entries = entries.iter().flat_map(|&(tag, rights, id)| {
        let (tag, rights, id) = (tag.to_le_bytes(), rights.to_le_bytes(), id.to_le_bytes());
        [tag, rights].concat().into_iter().chain(id)
    });
    Acl::of(&Acl::VERSION.into_iter().chain(entries).collect::<Vec<_>>()).expect("an ACL")
}

#[test]
fn acl_of_file_that_lost_its_group_gives_no_user_more_rights_than_before() {
    const NOBODY: u32 = u32::MAX;
    let of = |group, mask, others| {
        acl(&[
            (0x01, 6, NOBODY),
            (0x02, 7, 1003),
            (0x04, group, NOBODY),
            (0x08, 4, 2001),
            (0x10, mask, NOBODY),
            (0x20, others, NOBODY),
        ])
    };
    assert_eq!(of(6, 7, 4).without_group(), of(0, 7, 4));
    assert_eq!(of(0, 7, 4).without_group(), of(0, 7, 0));
    assert_eq!(of(6, 2, 4).without_group(), of(0, 2, 0));
    assert_eq!(of(5, 5, 5).without_group(), of(0, 5, 5));
}

#[test]
fn acl_of_unknown_version_or_wrong_length_is_an_error() {
    for bytes in [&b""[..], &[1, 0, 0, 0], &[2, 0, 0, 0, 1]] {
        assert!(Acl::of(bytes).is_err(), "{bytes:?}");
    }
}
