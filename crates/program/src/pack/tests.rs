mod brute;

use super::*;

/// If a need contains MSR 0xffffffff, which no window can contain, the scan stops there instead of
/// searching forever.
#[test]
fn packer_stops_at_last_msr_which_no_range_of_a_filter_can_contain() {
    let msrs = MsrRange::new(MsrIndex::new(u32::MAX - 1), MsrIndex::MAX).unwrap();
    for accesses in [Accesses::Read, Accesses::Write, Accesses::Both] {
        let windows = scan::fewest_windows(&[need::Need { accesses, msrs }]);
        assert!(!windows.is_empty());
        assert!(
            windows
                .iter()
                .all(|window| window.msrs.last() < MsrIndex::MAX)
        );
    }
}
