//! The MSRs that a test of a policy accesses.

use msrgate_filter::MsrIndex;
use msrgate_program::{MsrRange, Variant};

use crate::policy::Policy;

/// The largest range of which every MSR is tested. The groups and banks that people name are no
/// larger.
const WHOLE: u64 = 64;

/// The MSRs tested under every policy: registers that KVM has for every guest, so that a policy
/// without entries is tested, too; places between and around the clusters in which MSRs lie; and
/// indices that KVM treats as special (S3.1, S3.5).
const ALWAYS: [u32; 24] = [
    0x5,
    0x10,
    0x8b,
    0x174,
    0x1a0,
    0x277,
    0x7ff,
    0x800,
    0x8ff,
    0x900,
    0x1fff,
    0x2000,
    0x1234_5678,
    0x3fff_ffff,
    0x4b56_4eff,
    0x7fff_ffff,
    0xbfff_ffff,
    0xc000_0080,
    0xc000_0082,
    0xc000_0102,
    0xc000_1fff,
    0xc001_2000,
    0xffff_fffe,
    0xffff_ffff,
];

/// Returns the MSRs that show if a filter enforces the policy, sorted and each once: both ends of
/// each entry and of each filter range, one MSR past each end, every MSR of small ranges, and some
/// MSRs that are tested under every policy.
#[must_use]
pub fn test_points(policy: &Policy, variant: &Variant) -> Vec<MsrIndex> {
    let entries = policy
        .entries()
        .iter()
        .flat_map(|entry| entry.msrs().ranges())
        .copied();
    let ranges = variant.filter().ranges().iter().filter_map(|range| {
        let last = MsrIndex::new(range.end()?.get() - 1);
        MsrRange::new(range.base(), last)
    });
    let mut points: Vec<_> = entries
        .chain(ranges)
        .flat_map(around)
        .chain(ALWAYS.map(MsrIndex::new))
        .collect();
    points.sort_unstable();
    points.dedup();
    points
}

/// Returns both ends of a range, one MSR past each, and every MSR between if the range is small.
fn around(msrs: MsrRange) -> Vec<MsrIndex> {
    let (first, last) = (msrs.first().get(), msrs.last().get());
    let ends = [first.saturating_sub(1), first, last, last.saturating_add(1)];
    let within = if msrs.count() <= WHOLE {
        first..=last
    } else {
        first..=first
    };
    ends.into_iter().chain(within).map(MsrIndex::new).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compile::compile;
    use crate::source::Source;
    use crate::{NoIncludes, parse};

    #[test]
    fn test_points_include_both_ends_of_entry_and_one_msr_past_each() {
        let text = "policy = 1\ndefault = 'deny'\n[msrs]\n'0x10..=0x12' = 'r'\n'0x1000..=0x1fff' = 'w'\n0xfffffffe = 'rw'";
        let compiled =
            compile(parse(&Source::new("test.toml", text), &mut NoIncludes).unwrap()).unwrap();
        let points = test_points(compiled.policy(), &compiled.variants()[0]);
        for index in [
            0xf,
            0x10,
            0x11,
            0x12,
            0x13,
            0xfff,
            0x1000,
            0x1fff,
            0x2000,
            0xffff_fffd,
            0xffff_fffe,
            0xffff_ffff,
        ] {
            assert!(points.contains(&MsrIndex::new(index)), "{index:#x}");
        }
        assert!(!points.contains(&MsrIndex::new(0x1800)));
        assert!(points.is_sorted());
    }
}
