//! Kinds of accesses (an MSR, a direction and a tag), and a lock-free table of a fixed size that holds them.

use std::sync::atomic::{AtomicU64, Ordering};

use msrgate_filter::{Access, MsrIndex};

/// A kind of access: an MSR, a direction and a tag, such as a disposition, in 64 bits that are never 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::gate) struct Kind(u64);

/// The lowest bit of a kind's tag. The bits below it hold the MSR, the direction, and a bit that is always
/// set.
const TAG: u32 = 34;

impl Kind {
    /// Makes a kind from an MSR, a direction, and the lower 30 bits of `tag`.
    pub(in crate::gate) const fn new(tag: u64, index: MsrIndex, access: Access) -> Self {
        Self(tag << TAG | (index.get() as u64) << 2 | (access as u64) << 1 | 1)
    }

    pub(in crate::gate) const fn tag(self) -> u64 {
        self.0 >> TAG
    }

    pub(in crate::gate) const fn index(self) -> MsrIndex {
        #[expect(
            clippy::cast_possible_truncation,
            reason = "the tag is cut off on purpose"
        )]
        MsrIndex::new((self.0 >> 2) as u32)
    }

    pub(in crate::gate) const fn access(self) -> Access {
        if self.0 & 2 == 0 {
            Access::Read
        } else {
            Access::Write
        }
    }

    /// The first of a table's `N` places at which the kind may be. The place is found by Fibonacci hashing:
    /// the top bits of the product with 2^64 divided by the golden ratio.
    #[inline]
    pub(in crate::gate) const fn home<const N: usize>(self) -> usize {
        const { assert!(N.is_power_of_two() && N > 1) };
        let product = self.0.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        #[expect(
            clippy::cast_possible_truncation,
            reason = "it is less than N, a usize"
        )]
        let home = (product >> (64 - N.ilog2())) as usize;
        home
    }
}

/// A table of kinds with `N` places. Each kind is at its home place, which a hash gives, or at one of the
/// places after that one. Any thread may search and add.
pub(in crate::gate) struct Kinds<const N: usize>(Box<[AtomicU64]>);

/// The result of a search for a kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::gate) enum Found {
    /// The kind was not in the table, and was added at this place.
    New(usize),
    /// The kind was at this place already.
    Known(usize),
    /// Other kinds have taken all places where the kind may be.
    NoRoom,
}

impl<const N: usize> Kinds<N> {
    /// Makes an empty table.
    pub(in crate::gate) fn new() -> Self {
        Self((0..N).map(|_| AtomicU64::new(0)).collect())
    }

    /// Finds a kind, or adds it. `places` is the number of places to look at, from the kind's home on. The
    /// search is bounded, so that a guest that accesses all MSRs does not make each access slow.
    #[inline]
    pub(in crate::gate) fn find(&self, kind: Kind, places: usize) -> Found {
        let home = kind.home::<N>();
        for offset in 0..places {
            let place = (home + offset) % N;
            let Some(slot) = self.0.get(place) else {
                return Found::NoRoom;
            };
            let held = slot.load(Ordering::Relaxed);
            if held == kind.0 {
                return Found::Known(place);
            }
            if held == 0 {
                match slot.compare_exchange(0, kind.0, Ordering::Relaxed, Ordering::Relaxed) {
                    Ok(_) => return Found::New(place),
                    Err(other) if other == kind.0 => return Found::Known(place),
                    Err(_) => {}
                }
            }
        }
        Found::NoRoom
    }

    /// Returns all kinds of the table, each with its place.
    pub(in crate::gate) fn all(&self) -> impl Iterator<Item = (usize, Kind)> {
        let slots = self.0.iter().map(|slot| slot.load(Ordering::Relaxed));
        let taken = slots.enumerate().filter(|(_, held)| *held != 0);
        taken.map(|(place, held)| (place, Kind(held)))
    }

    /// Removes the kinds for which `is_kept` is false. A kind that stays may later be added a second time,
    /// if its place comes after that of a removed kind, or if another thread searches for it at the same
    /// time.
    pub(in crate::gate) fn retain(&self, is_kept: impl Fn(Kind) -> bool) {
        for slot in &self.0 {
            let held = slot.load(Ordering::Relaxed);
            if held != 0 && !is_kept(Kind(held)) {
                slot.store(0, Ordering::Relaxed);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kind_returns_its_msr_direction_and_tag() {
        for index in [0, 0x10, 0xc000_0082, u32::MAX] {
            for access in Access::ALL {
                for tag in [0, 13, (1 << 30) - 1] {
                    let kind = Kind::new(tag, MsrIndex::new(index), access);
                    let parts = (kind.tag(), kind.index().get(), kind.access());
                    assert_eq!(parts, (tag, index, access));
                }
            }
        }
    }

    #[test]
    fn find_in_full_table_adds_no_kind() {
        let kinds = Kinds::<2>::new();
        let kind = |index| Kind::new(0, MsrIndex::new(index), Access::Read);
        let found: Vec<_> = (0..3).map(|index| kinds.find(kind(index), 2)).collect();
        assert!(matches!(
            found[..],
            [Found::New(_), Found::New(_), Found::NoRoom]
        ));
        assert!(matches!(kinds.find(kind(1), 2), Found::Known(_)));
        kinds.retain(|one| one == kind(1));
        let left: Vec<_> = kinds.all().map(|(_, one)| one).collect();
        assert_eq!(left, [kind(1)]);
    }
}
