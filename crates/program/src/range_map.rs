//! A map from each of 2^32 MSRs to a value, stored as consecutive ranges.

use alloc::boxed::Box;
use alloc::vec::Vec;

use msrgate_filter::MsrIndex;

use crate::msrs::MsrRange;

/// A map with a value for each MSR, stored as ranges in order and without gaps.
///
/// The ends of the ranges are stored apart from the values, so that a lookup searches only the
/// ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RangeMap<T> {
    /// The last MSR of each range, in ascending order. The last range ends at [`MsrIndex::MAX`].
    lasts: Box<[MsrIndex]>,
    /// The value of each range.
    values: Box<[T]>,
}

impl<T> RangeMap<T> {
    /// The ranges in order, each with its value.
    #[must_use]
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = (MsrRange, &T)> + Clone {
        let places = 0..self.lasts.len();
        places.map(|place| (self.range(place), self.value(place)))
    }

    /// The number of ranges, at least 1.
    #[expect(
        clippy::len_without_is_empty,
        reason = "a map of all MSRs is never empty"
    )]
    #[must_use]
    pub fn len(&self) -> usize {
        self.lasts.len()
    }

    /// Returns the position of the range that contains an MSR, counted from 0: less than
    /// [`Self::len`].
    #[must_use]
    pub fn place(&self, index: MsrIndex) -> usize {
        self.lasts.partition_point(|&last| last < index)
    }

    /// Returns the value of an MSR if the range at `place` contains the MSR.
    #[inline]
    pub(crate) fn at_place(&self, place: usize, index: MsrIndex) -> Option<&T> {
        let is_after = |before: usize| self.lasts.get(before).is_some_and(|last| *last < index);
        let is_within = *self.lasts.get(place)? >= index && (place == 0 || is_after(place - 1));
        if is_within {
            self.values.get(place)
        } else {
            None
        }
    }

    /// Returns the range at this position and its value, or `None` if `place` is not below
    /// [`Self::len`].
    #[inline]
    #[must_use]
    pub fn nth(&self, place: usize) -> Option<(MsrRange, &T)> {
        let value = self.values.get(place)?;
        Some((self.range(place), value))
    }

    /// Returns the range at this position.
    ///
    /// # Panics
    /// Panics if `place` is not below [`Self::len`].
    #[must_use]
    pub fn range(&self, place: usize) -> MsrRange {
        let last = self.lasts[place];
        let first = match place {
            0 => MsrIndex::MIN,
            _ => MsrIndex::new(self.lasts[place - 1].get().wrapping_add(1)),
        };
        MsrRange::new(first, last).unwrap_or(MsrRange::one(last))
    }

    /// Returns the value of the range at this position.
    ///
    /// # Panics
    /// Panics if `place` is not below [`Self::len`].
    #[must_use]
    pub fn value(&self, place: usize) -> &T {
        &self.values[place]
    }

    /// The value that the map has for one MSR.
    #[must_use]
    pub fn at(&self, index: MsrIndex) -> &T {
        self.value(self.place(index))
    }

    /// Iterates over the ranges that share MSRs with `msrs`, in order. The ranges are not cut to
    /// `msrs`.
    pub fn within(&self, msrs: MsrRange) -> impl Iterator<Item = (MsrRange, &T)> {
        let places = self.place(msrs.first())..=self.place(msrs.last());
        places.map(|place| (self.range(place), self.value(place)))
    }

    /// Iterates over two maps at once. Each item is a range of MSRs throughout which each of the
    /// two maps has a single value, with these two values. The ranges are in order and without
    /// gaps.
    pub fn zip<'m, U>(
        &'m self,
        other: &'m RangeMap<U>,
    ) -> impl Iterator<Item = (MsrRange, &'m T, &'m U)> {
        let (mut place, mut others) = (0, 0);
        core::iter::from_fn(move || {
            let ((msrs, value), (theirs, other)) = (self.nth(place)?, other.nth(others)?);
            // Both maps cover all MSRs, so both end at the last MSR.
            place += usize::from(msrs.last() <= theirs.last());
            others += usize::from(theirs.last() <= msrs.last());
            Some((msrs.shared(theirs)?, value, other))
        })
    }
}

/// A builder of a [`RangeMap`], from the lowest MSR up.
#[derive(Clone, Debug)]
pub struct RangeMapBuilder<T> {
    lasts: Vec<MsrIndex>,
    values: Vec<T>,
}

impl<T> Default for RangeMapBuilder<T> {
    fn default() -> Self {
        Self {
            lasts: Vec::new(),
            values: Vec::new(),
        }
    }
}

impl<T> RangeMapBuilder<T> {
    /// The last MSR to which the builder has given a value so far.
    #[must_use]
    pub fn last(&self) -> Option<MsrIndex> {
        self.lasts.last().copied()
    }

    /// Adds a range with `value` from the first MSR without a value up to `last`. If the MSR `last`
    /// already has a value, this call does nothing.
    pub fn push(&mut self, last: MsrIndex, value: T) {
        if self.last().is_none_or(|before| before < last) {
            self.lasts.push(last);
            self.values.push(value);
        }
    }

    /// Gives `value` to the MSRs from the first one without a value up to `last`. If the last range of
    /// the map so far has the same value, that range is extended instead.
    pub fn join(&mut self, last: MsrIndex, value: T)
    where
        T: PartialEq,
    {
        match (self.lasts.last_mut(), self.values.last()) {
            (Some(before), Some(same)) if *same == value => *before = last.max(*before),
            _ => self.push(last, value),
        }
    }

    /// Returns the finished map. MSRs without a value get the value `rest`.
    #[must_use]
    pub fn finish(mut self, rest: T) -> RangeMap<T>
    where
        T: PartialEq,
    {
        if self.last() != Some(MsrIndex::MAX) {
            self.join(MsrIndex::MAX, rest);
        }
        RangeMap {
            lasts: self.lasts.into(),
            values: self.values.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(runs: &[(u32, char)], rest: char) -> RangeMap<char> {
        let mut builder = RangeMapBuilder::default();
        for &(last, value) in runs {
            builder.join(MsrIndex::new(last), value);
        }
        builder.finish(rest)
    }

    fn shown<T: core::fmt::Display>(map: &RangeMap<T>) -> Vec<String> {
        let one = |(msrs, value): (MsrRange, &T)| format!("{msrs} {value}");
        map.iter().map(one).collect()
    }

    #[test]
    fn range_map_join_merges_ranges_of_equal_value_and_finish_fills_the_rest() {
        let joined = map(&[(3, 'a'), (5, 'a'), (9, 'b')], 'b');
        assert_eq!(shown(&joined), ["0x0..=0x5 a", "0x6..=0xffffffff b"]);
        let whole = map(&[(u32::MAX, 'a')], 'b');
        assert_eq!(shown(&whole), ["0x0..=0xffffffff a"]);
    }

    #[test]
    fn range_map_push_keeps_ranges_of_equal_value_apart() {
        let mut builder = RangeMapBuilder::default();
        builder.push(MsrIndex::new(3), 'a');
        builder.push(MsrIndex::new(2), 'b');
        builder.push(MsrIndex::MAX, 'a');
        let apart = builder.finish('c');
        assert_eq!(shown(&apart), ["0x0..=0x3 a", "0x4..=0xffffffff a"]);
    }

    #[test]
    fn range_map_lookup_finds_the_range_of_each_msr() {
        let map = map(&[(3, 'a'), (4, 'b')], 'c');
        let at = |index: u32| *map.at(MsrIndex::new(index));
        assert_eq!(
            [at(0), at(3), at(4), at(5), at(u32::MAX)],
            ['a', 'a', 'b', 'c', 'c']
        );
        let within = MsrRange::new(MsrIndex::new(3), MsrIndex::new(4)).unwrap();
        let ranges: Vec<_> = map
            .within(within)
            .map(|(msrs, _)| msrs.to_string())
            .collect();
        assert_eq!(ranges, ["0x0..=0x3", "0x4"]);
        assert_eq!(map.nth(3), None);
    }

    #[test]
    fn range_map_zip_splits_ranges_where_either_map_changes() {
        let (one, other) = (map(&[(3, 'a'), (9, 'b')], 'c'), map(&[(5, 'x')], 'y'));
        let zipped: Vec<_> = one
            .zip(&other)
            .map(|(msrs, one, other)| format!("{msrs} {one}{other}"))
            .collect();
        assert_eq!(
            zipped,
            [
                "0x0..=0x3 ax",
                "0x4..=0x5 bx",
                "0x6..=0x9 by",
                "0xa..=0xffffffff cy"
            ]
        );
    }
}
