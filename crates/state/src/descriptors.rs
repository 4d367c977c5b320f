//! The numbers of the descriptors that the library keeps in the VMM.

/// Returns the lowest number for the library's own descriptors in a process that may have `limit` of them
/// (`RLIMIT_NOFILE`): above the numbers that a VMM counts on, and below its limit. The command makes room for it before
/// the VMM starts.
#[must_use]
pub fn lowest_library_fd(limit: u64) -> i32 {
    const HIGH: i32 = 4096;
    i32::try_from(limit / 4 * 3).map_or(HIGH, |lowest| lowest.min(HIGH))
}
