//! The numbers of the descriptors that the library keeps in the VMM.

/// Returns the lowest number for the library's own descriptors in a process whose limit of descriptors
/// (`RLIMIT_NOFILE`) is `limit`. The number is above those that a VMM relies on, and below the limit. The
/// command raises the size of the process's descriptor table accordingly before the VMM starts.
#[must_use]
pub fn lowest_library_fd(limit: u64) -> i32 {
    const HIGH: i32 = 4096;
    i32::try_from(limit / 4 * 3).map_or(HIGH, |lowest| lowest.min(HIGH))
}
