//! Comparison of the packer with all possible filters, in a space small enough to try them.
//!
//! A filter is modelled as the kernel sees it: ranges in any order, of any colour, with any bits,
//! of which the first that contains an access decides it (S3.3). The model shares no assumption
//! with the packer: not the order of the colours, not the meaning of a bit, not the length of a
//! window.

use msrgate_filter::{Accesses, MsrIndex};

use super::super::need::Need;
use super::super::scan::fewest_windows;
use super::MsrRange;

/// A small space: the number of its MSRs, and the largest number of MSRs in a range.
#[derive(Clone, Copy)]
struct Space {
    msrs: u32,
    length: u32,
}

/// A set of accesses: bit *n* is the read of the *n*th MSR, bit *n* + `msrs` its write.
type Points = u32;

/// A range: the accesses that it decides, and those of them whose verdict differs from the default.
struct SmallRange {
    decides: Points,
    differs: Points,
}

impl Space {
    /// Returns all possible ranges.
    fn ranges(self) -> Vec<SmallRange> {
        let mut ranges = Vec::new();
        for base in 0..self.msrs {
            for count in 1..=self.length.min(self.msrs - base) {
                for bits in 0..1 << count {
                    let (all, some) = (((1 << count) - 1) << base, bits << base);
                    for both in [1, 1 << self.msrs, 1 | 1 << self.msrs] {
                        let (decides, differs) = (all * both, some * both);
                        ranges.push(SmallRange { decides, differs });
                    }
                }
            }
        }
        ranges
    }

    /// Returns, for each set of accesses, the fewest ranges of a filter in which exactly these accesses
    /// differ from the default. All filters of one range are tried, then all filters of two ranges, and
    /// so on. Of filters that decide the same accesses in the same way, only one is extended.
    fn fewest(self) -> Vec<usize> {
        let bits = 2 * self.msrs;
        let ranges = self.ranges();
        let mut fewest = vec![usize::MAX; 1 << bits];
        let mut missing = fewest.len();
        let mut seen = vec![0_u64; (1_usize << (2 * bits)).div_ceil(64)];
        let mut filters: Vec<(Points, Points)> = vec![(0, 0)];
        for count in 0.. {
            for &(_, differs) in &filters {
                if fewest[differs as usize] == usize::MAX {
                    fewest[differs as usize] = count;
                    missing -= 1;
                }
            }
            if missing == 0 {
                break;
            }
            let mut longer = Vec::new();
            for &(decided, differs) in &filters {
                for range in &ranges {
                    let differs = differs | range.differs & !decided;
                    let decided = decided | range.decides;
                    let filter = decided << bits | differs;
                    let (word, bit) = (&mut seen[filter as usize / 64], 1 << (filter % 64));
                    if *word & bit == 0 {
                        *word |= bit;
                        longer.push((decided, differs));
                    }
                }
            }
            filters = longer;
        }
        fewest
    }

    /// Returns the needs in the packer's space that correspond to the accesses in `differing`. The
    /// MSRs are spaced so that as many of them lie in a window as in a range of the small space.
    fn needs(self, differing: Points) -> Vec<Need> {
        let spread = 0x3000 / self.length;
        let need = |msr: u32| {
            let has = |bit: u32| differing >> bit & 1 == 1;
            let accesses = match (has(msr), has(msr + self.msrs)) {
                (true, true) => Accesses::Both,
                (true, false) => Accesses::Read,
                (false, true) => Accesses::Write,
                (false, false) => return None,
            };
            let msrs = MsrRange::one(MsrIndex::new(0x10_0000 + msr * spread));
            Some(Need { accesses, msrs })
        };
        (0..self.msrs).filter_map(need).collect()
    }

    /// Checks for each set of accesses that the packer takes as few windows as the shortest filter
    /// has ranges. Returns the number of sets.
    fn compare(self) -> usize {
        let fewest = self.fewest();
        for (differing, &fewest) in (0..).zip(&fewest) {
            let needs = self.needs(differing);
            assert_eq!(fewest_windows(&needs).len(), fewest, "{needs:?}");
        }
        fewest.len()
    }
}

#[test]
fn packer_takes_as_few_windows_as_shortest_possible_filter_has_ranges() {
    let small = [(1, 1), (4, 1), (6, 2), (7, 3)];
    let compared = small.map(|(msrs, length)| Space { msrs, length }.compare());
    assert_eq!(compared, [4, 256, 4096, 16_384]);
}
