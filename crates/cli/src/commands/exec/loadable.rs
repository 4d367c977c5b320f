//! The check that the dynamic linker can load a library by its path.

use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use rustix::fs::{StatVfsMountFlags, statvfs};

/// Returns the reason why the dynamic linker, ld.so(8), cannot load a library with this path, or from this
/// folder. Returns `None` if it can.
pub(super) fn refusal(path: &Path) -> Option<&'static str> {
    let has = |bytes: &[u8]| {
        path.as_os_str()
            .as_bytes()
            .iter()
            .any(|byte| bytes.contains(byte))
    };
    if has(b": \t\n") {
        return Some("the dynamic linker takes no library whose path has a space or a colon");
    }
    if has(b"$") {
        return Some("the dynamic linker puts other words in the place of a $ in a library's path");
    }
    let is_noexec =
        statvfs(path).is_ok_and(|there| there.f_flag.contains(StatVfsMountFlags::NOEXEC));
    is_noexec.then_some(
        "the dynamic linker cannot load a library from a file system that is mounted noexec",
    )
}
