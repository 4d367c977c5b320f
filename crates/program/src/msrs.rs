//! Sets of MSRs: consecutive MSRs, and the MSRs that a key of a policy covers.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::fmt;

use msrgate_filter::MsrIndex;

/// Consecutive MSRs, at least one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct MsrRange {
    first: MsrIndex,
    last: MsrIndex,
}

impl MsrRange {
    /// The range of all 2^32 MSRs.
    pub const ALL: Self = Self {
        first: MsrIndex::MIN,
        last: MsrIndex::MAX,
    };

    /// Creates the range from `first` to `last`, including both. Returns `None` if `first` is above
    /// `last`.
    #[must_use]
    pub fn new(first: MsrIndex, last: MsrIndex) -> Option<Self> {
        (first <= last).then_some(Self { first, last })
    }

    /// Creates the range between two MSRs, including both, in whichever order they are given.
    #[must_use]
    pub fn between(one: MsrIndex, other: MsrIndex) -> Self {
        Self {
            first: one.min(other),
            last: one.max(other),
        }
    }

    /// Creates the range of one MSR.
    #[must_use]
    pub const fn one(index: MsrIndex) -> Self {
        Self {
            first: index,
            last: index,
        }
    }

    /// The lowest MSR of the range.
    #[must_use]
    pub const fn first(self) -> MsrIndex {
        self.first
    }

    /// The highest MSR of the range.
    #[must_use]
    pub const fn last(self) -> MsrIndex {
        self.last
    }

    /// The number of MSRs in the range, at most 2^32.
    #[must_use]
    pub fn count(self) -> u64 {
        u64::from(self.last.get() - self.first.get()) + 1
    }

    /// Returns true if the range contains `index`.
    #[must_use]
    pub fn contains(self, index: MsrIndex) -> bool {
        (self.first..=self.last).contains(&index)
    }

    /// Returns true if some MSR is in both ranges.
    #[must_use]
    pub fn overlaps(self, other: Self) -> bool {
        self.shared(other).is_some()
    }

    /// Creates the range that begins at the MSR `from` and ends directly below `to`. Returns `None` if the
    /// range would be empty.
    #[must_use]
    pub fn below(from: u64, to: u64) -> Option<Self> {
        let first = u32::try_from(from).ok()?;
        let last = u32::try_from(to.checked_sub(1)?).ok()?;
        Self::new(MsrIndex::new(first), MsrIndex::new(last))
    }

    /// Returns both ranges as one if `next` begins where this range ends.
    #[must_use]
    pub fn joined(self, next: Self) -> Option<Self> {
        let follows = self.last.get().checked_add(1) == Some(next.first.get());
        follows.then_some(Self {
            first: self.first,
            last: next.last,
        })
    }

    /// Returns the MSRs that both ranges contain; `None` if the ranges do not overlap.
    #[must_use]
    pub fn shared(self, other: Self) -> Option<Self> {
        Self::new(self.first.max(other.first), self.last.min(other.last))
    }
}

impl From<MsrIndex> for MsrRange {
    fn from(index: MsrIndex) -> Self {
        Self::one(index)
    }
}

/// Writes the range as a policy does: `0x10`, or `0x10..=0x1f`.
impl fmt::Display for MsrRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.first == self.last {
            write!(f, "{}", self.first)
        } else {
            write!(f, "{}..={}", self.first, self.last)
        }
    }
}

/// A set of at least one MSR, stored as ascending ranges that do not touch.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct MsrSet {
    ranges: Ranges,
}

/// The ranges of a set. Most entries of a policy cover a single range, which is stored in the set
/// itself, without an allocation.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Ranges {
    One(MsrRange),
    /// The ranges of a set that is not a single range: at least two.
    Several(Box<[MsrRange]>),
}

impl From<MsrRange> for MsrSet {
    fn from(range: MsrRange) -> Self {
        Self {
            ranges: Ranges::One(range),
        }
    }
}

impl MsrSet {
    /// Creates the set of the MSRs of all these ranges. Returns `None` if `ranges` is empty.
    #[must_use]
    pub fn new(ranges: impl IntoIterator<Item = MsrRange>) -> Option<Self> {
        let mut ranges: Vec<_> = ranges.into_iter().collect();
        ranges.sort_unstable_by_key(|range| range.first());
        let mut apart: Vec<MsrRange> = Vec::with_capacity(ranges.len());
        for range in ranges {
            match apart.last_mut() {
                Some(before)
                    if u64::from(before.last.get()) + 1 >= u64::from(range.first.get()) =>
                {
                    before.last = before.last.max(range.last);
                }
                _ => apart.push(range),
            }
        }
        match *apart {
            [] => None,
            [range] => Some(range.into()),
            _ => Some(Self {
                ranges: Ranges::Several(apart.into()),
            }),
        }
    }

    /// The ranges of the set, in order.
    #[must_use]
    pub const fn ranges(&self) -> &[MsrRange] {
        match &self.ranges {
            Ranges::One(range) => core::slice::from_ref(range),
            Ranges::Several(ranges) => ranges,
        }
    }

    /// The only range of the set, or `None` if it has several.
    #[must_use]
    pub fn as_range(&self) -> Option<MsrRange> {
        match self.ranges {
            Ranges::One(range) => Some(range),
            Ranges::Several(_) => None,
        }
    }

    /// The number of MSRs in the set, at most 2^32.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.ranges().iter().map(|range| range.count()).sum()
    }

    /// The lowest MSR of the set.
    #[must_use]
    pub fn first(&self) -> MsrIndex {
        self.ranges()[0].first
    }

    /// Returns true if the set contains `index`.
    #[must_use]
    pub fn contains(&self, index: MsrIndex) -> bool {
        let ranges = self.ranges();
        let place = ranges.partition_point(|range| range.last < index);
        ranges.get(place).is_some_and(|range| range.contains(index))
    }

    /// Iterates over the MSRs that both sets contain, as ascending ranges.
    pub fn shared<'s>(&'s self, other: &'s Self) -> impl Iterator<Item = MsrRange> + 's {
        let others = other.ranges();
        self.ranges().iter().flat_map(move |one| {
            let start = others.partition_point(|range| range.last < one.first);
            others[start..]
                .iter()
                .map_while(move |range| one.shared(*range))
        })
    }

    /// Returns true if some MSR is in both sets.
    #[must_use]
    pub fn overlaps(&self, other: &Self) -> bool {
        self.shared(other).next().is_some()
    }

    /// Returns true if `other` contains all MSRs of this set.
    #[must_use]
    pub fn is_within(&self, other: &Self) -> bool {
        self.shared(other).map(MsrRange::count).sum::<u64>() == self.count()
    }

    /// Returns the MSRs of this set that `other` does not contain; `None` if `other` contains all of
    /// them.
    #[must_use]
    pub fn without(&self, other: &Self) -> Option<Self> {
        let mut rest = Vec::new();
        for range in self.ranges() {
            let mut next = u64::from(range.first.get());
            for shared in other.ranges().iter().filter_map(|one| one.shared(*range)) {
                rest.extend(MsrRange::below(next, shared.first.get().into()));
                next = u64::from(shared.last.get()) + 1;
            }
            rest.extend(MsrRange::below(next, u64::from(range.last.get()) + 1));
        }
        Self::new(rest)
    }
}

/// Writes the ranges of the set, separated by commas.
impl fmt::Display for MsrSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, range) in self.ranges().iter().enumerate() {
            let comma = if number == 0 { "" } else { ", " };
            write!(f, "{comma}{range}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(first: u32, last: u32) -> MsrRange {
        MsrRange::new(MsrIndex::new(first), MsrIndex::new(last)).unwrap()
    }

    #[test]
    fn new_msr_set_sorts_its_ranges_and_joins_those_that_touch() {
        let set = MsrSet::new([range(8, 9), range(1, 3), range(4, 5), range(9, 12)]).unwrap();
        assert_eq!(set.to_string(), "0x1..=0x5, 0x8..=0xc");
        assert_eq!(set.count(), 10);
        for index in 0..20 {
            let inside = (1..=5).contains(&index) || (8..=12).contains(&index);
            assert_eq!(set.contains(MsrIndex::new(index)), inside, "{index}");
        }
        assert_eq!(MsrSet::new([]), None);
        assert_eq!(
            MsrSet::new([range(0, u32::MAX), range(5, 5)])
                .unwrap()
                .count(),
            1 << 32
        );
    }

    #[test]
    fn shared_of_msr_sets_returns_msrs_in_both() {
        let shared = |one: &[MsrRange], other: &[MsrRange]| {
            let sets = [one, other].map(|ranges| MsrSet::new(ranges.iter().copied()).unwrap());
            sets[0]
                .shared(&sets[1])
                .map(|range| range.to_string())
                .collect::<Vec<_>>()
        };
        let two = [range(1, 3), range(7, 9)];
        assert_eq!(shared(&two, &[range(2, 8)]), ["0x2..=0x3", "0x7..=0x8"]);
        assert_eq!(shared(&[range(2, 8)], &two), ["0x2..=0x3", "0x7..=0x8"]);
        assert_eq!(shared(&two, &[range(4, 6)]), [""; 0]);
    }
}
