//! The access rights of a file (owner, group, mode and POSIX ACL), which msrgate gives to the new file that
//! replaces it.
//!
//! No user may do more with the new file than with the old one, except for the caller, who makes the file.
//! The new file does not get the bits setuid, setgid and sticky: the files are data, and if the new file has
//! another owner, that owner did not set the bits.

use std::fs::{self, File, Metadata, Permissions};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, fchown};
use std::path::Path;

use rustix::fs::{XattrFlags, fgetxattr, fremovexattr, fsetxattr, lgetxattr};
use rustix::io::Errno;

/// The name of the extended attribute that holds a file's ACL.
const ACL: &str = "system.posix_acl_access";

/// The largest size of an extended attribute in Linux, in bytes.
const MOST_BYTES: usize = 64 << 10;

/// The bits of a file's mode for reading, writing and executing.
const RIGHTS: u32 = 0o777;

/// The access rights that a file gives to its owner, its group and other users.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Access {
    owner: u32,
    group: u32,
    mode: u32,
    acl: Option<Acl>,
}

/// The access rights of the old file that the new file has got: all, or all except those of the group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Given {
    /// The new file has the old file's group, and all rights of its mode and ACL.
    Whole,
    /// The new file has another group, because the caller cannot give it the old file's group. Members of
    /// the new group have at most the rights of others.
    WithoutGroup,
}

impl Access {
    /// Returns the access rights of an open file.
    ///
    /// # Errors
    /// The ACL of the open file cannot be read.
    pub(crate) fn of_open(file: &File, metadata: &Metadata) -> io::Result<Self> {
        let mut bytes = vec![0; MOST_BYTES];
        let length = fgetxattr(file, ACL, &mut bytes[..]);
        Self::with(metadata, &bytes, length)
    }

    /// Returns the access rights of the file at `path`, which the caller may not be able to open. Symbolic
    /// links are not followed.
    ///
    /// # Errors
    /// The ACL of the file at `path` cannot be read.
    pub(crate) fn of_path(path: &Path, metadata: &Metadata) -> io::Result<Self> {
        let mut bytes = vec![0; MOST_BYTES];
        let length = lgetxattr(path, ACL, &mut bytes[..]);
        Self::with(metadata, &bytes, length)
    }

    fn with(metadata: &Metadata, bytes: &[u8], length: Result<usize, Errno>) -> io::Result<Self> {
        let acl = match length {
            Ok(length) => Some(Acl::of(&bytes[..length])?),
            // The file has no ACL, or its file system supports no ACLs.
            Err(Errno::NODATA | Errno::OPNOTSUPP) => None,
            Err(error) => return Err(error.into()),
        };
        Ok(Self {
            owner: metadata.uid(),
            group: metadata.gid(),
            mode: metadata.mode(),
            acl,
        })
    }

    /// Gives these access rights to a new file that belongs to the caller, and that no other user may read
    /// yet. If the caller may not change the owner, the file still belongs to the caller.
    ///
    /// # Errors
    /// The mode or the ACL of the new file cannot be set.
    pub(crate) fn give(&self, new: &File) -> io::Result<Given> {
        let before = new.metadata()?;
        let owner = Ids::Users.knows(self.owner).then_some(self.owner);
        let group = Ids::Groups.knows(self.group).then_some(self.group);
        if (Some(before.uid()), Some(before.gid())) != (owner, group) {
            // Only the superuser may change the owner. A caller that is a member of the group may still set
            // the group.
            let whole = fchown(new, owner, group);
            let _ = whole.or_else(|_| fchown(new, None, group));
        }
        let given = if group == Some(new.metadata()?.gid()) {
            Given::Whole
        } else {
            Given::WithoutGroup
        };
        match (&self.acl, given) {
            (Some(acl), Given::Whole) => acl.set(new)?,
            (Some(acl), Given::WithoutGroup) => acl.without_group().set(new)?,
            (None, _) => {
                // The file may have an ACL from its folder. The mode's bits for the group would activate
                // entries of that ACL.
                remove_acl(new)?;
                new.set_permissions(Permissions::from_mode(self.rights(given)))?;
            }
        }
        Ok(given)
    }

    /// Returns the mode's bits for the new file. If the new file has lost the old group, the members of that
    /// group count as others, and others may be members of the new group. So the new file gives its group
    /// and others only the rights that the old file gave to both its group and others.
    const fn rights(&self, given: Given) -> u32 {
        let rights = self.mode & RIGHTS;
        match given {
            Given::Whole => rights,
            Given::WithoutGroup => {
                let others = rights & (rights >> 3) & 0o7;
                rights & 0o700 | others << 3 | others
            }
        }
    }
}

/// The kind of IDs to look up in this process's user namespace: user IDs or group IDs.
#[derive(Clone, Copy, Debug)]
enum Ids {
    Users,
    Groups,
}

impl Ids {
    /// Returns false if `id` is the kernel's overflow ID, which stands for every user or group that has no
    /// ID in the namespace: two files with the overflow ID may belong to different users.
    fn knows(self, id: u32) -> bool {
        let (map, overflow) = match self {
            Self::Users => ("/proc/self/uid_map", "/proc/sys/kernel/overflowuid"),
            Self::Groups => ("/proc/self/gid_map", "/proc/sys/kernel/overflowgid"),
        };
        let read = |path| fs::read_to_string(path).unwrap_or_default();
        let has_all = read(map).split_whitespace().eq(["0", "0", "4294967295"]);
        has_all || read(overflow).trim().parse() != Ok(id)
    }
}

fn remove_acl(file: impl AsFd) -> io::Result<()> {
    match fremovexattr(file, ACL) {
        Ok(()) | Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// An ACL as the bytes of the extended attribute [`ACL`]: a version, then entries of eight bytes. Each entry
/// holds a tag, access rights, and a user or group ID.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Acl(Vec<u8>);

impl Acl {
    const VERSION: [u8; 4] = 2u32.to_le_bytes();
    const OWNING_GROUP: u16 = 0x04;
    const MASK: u16 = 0x10;
    const OTHERS: u16 = 0x20;

    fn of(bytes: &[u8]) -> io::Result<Self> {
        match bytes.strip_prefix(&Self::VERSION) {
            Some(entries) if entries.len() % 8 == 0 => Ok(Self(bytes.to_owned())),
            _ => Err(io::Error::other("an ACL of an unknown form")),
        }
    }

    fn set(&self, file: impl AsFd) -> io::Result<()> {
        Ok(fsetxattr(file, ACL, &self.0, XattrFlags::empty())?)
    }

    fn rights_of(&self, wanted: u16) -> Option<u16> {
        let (_, entries) = self.0.split_at(Self::VERSION.len());
        let (entries, _) = entries.as_chunks::<8>();
        entries.iter().find_map(|&[t0, t1, r0, r1, ..]| {
            (u16::from_le_bytes([t0, t1]) == wanted).then(|| u16::from_le_bytes([r0, r1]))
        })
    }

    /// Returns the ACL for a file whose group could not be kept. The file's new group gets no rights.
    /// Members of the old group now count as others, so others keep only those of their rights that the old
    /// group had, too.
    fn without_group(&self) -> Self {
        let mask = self.rights_of(Self::MASK).unwrap_or(0o7);
        let lost = self.rights_of(Self::OWNING_GROUP).unwrap_or(0) & mask;
        let mut acl = self.clone();
        let (_, entries) = acl.0.split_at_mut(Self::VERSION.len());
        let (entries, _) = entries.as_chunks_mut::<8>();
        for [t0, t1, r0, r1, ..] in entries {
            let rights = u16::from_le_bytes([*r0, *r1]);
            let fewer = match u16::from_le_bytes([*t0, *t1]) {
                Self::OWNING_GROUP => 0,
                Self::OTHERS => rights & lost,
                _ => rights,
            };
            [*r0, *r1] = fewer.to_le_bytes();
        }
        acl
    }
}

#[cfg(test)]
mod tests;
