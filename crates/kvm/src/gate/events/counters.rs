//! The counters of one vCPU: the number of its accesses by kind. The counters are lock-free and take a fixed
//! amount of memory.

use std::sync::atomic::{AtomicU64, Ordering};

use msrgate_filter::{Access, MsrIndex};
use msrgate_program::answer::Disposition;

use crate::gate::kinds::{Found, Kind, Kinds};

/// The number of counters of a vCPU, each for one kind (MSR, access, disposition). One more counter is for
/// the accesses of all other kinds.
const SLOTS: usize = 256;

/// The counters of one vCPU. Only the thread of that vCPU writes the counters.
pub(in crate::gate) struct Counters {
    /// The kinds that have a counter. A kind is an MSR, a direction, and as its tag the number of a
    /// disposition.
    kinds: Kinds<SLOTS>,
    counts: Box<[AtomicU64; SLOTS]>,
    others: AtomicU64,
}

/// The number of accesses of one kind: to one MSR, in one direction, with one disposition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Count {
    /// The MSR that was accessed.
    pub index: MsrIndex,
    /// The direction of the accesses: read or write.
    pub access: Access,
    /// The gate's disposition of the accesses.
    pub disposition: Disposition,
    /// The number of accesses.
    pub count: u64,
}

impl Counters {
    pub(in crate::gate) fn new() -> Self {
        Self {
            kinds: Kinds::new(),
            counts: Box::new([const { AtomicU64::new(0) }; SLOTS]),
            others: AtomicU64::new(0),
        }
    }

    /// Counts one access. Only one thread may call this function at a time.
    pub(in crate::gate) fn add(&self, index: MsrIndex, access: Access, disposition: Disposition) {
        let kind = Kind::new(u64::from(disposition.number()), index, access);
        let count = match self.kinds.find(kind, 8) {
            Found::New(place) | Found::Known(place) => &self.counts[place % SLOTS],
            Found::NoRoom => &self.others,
        };
        add_one(count);
    }

    /// Passes each counter's value to `found`. Returns the number of accesses whose kinds have no counter of
    /// their own.
    pub(super) fn each(&self, mut found: impl FnMut(Count)) -> u64 {
        for (place, kind) in self.kinds.all() {
            let disposition = usize::try_from(kind.tag()).ok();
            let disposition = disposition.and_then(|number| Disposition::ALL.get(number).copied());
            let count = self.counts[place % SLOTS].load(Ordering::Relaxed);
            // If the count is 0, the vCPU is counting the first access of this kind right now.
            if let (Some(disposition), 1..) = (disposition, count) {
                found(Count {
                    index: kind.index(),
                    access: kind.access(),
                    disposition,
                    count,
                });
            }
        }
        self.others.load(Ordering::Relaxed)
    }
}

/// Adds one to a counter. Only one thread writes the counter, so no atomic read-modify-write is needed.
pub(super) fn add_one(counter: &AtomicU64) {
    counter.store(counter.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_count_each_kind_of_access_separately() {
        let counters = Counters::new();
        let lstar = MsrIndex::new(0xc000_0082);
        for _ in 0..3 {
            counters.add(lstar, Access::Write, Disposition::Pinned);
        }
        counters.add(lstar, Access::Write, Disposition::Denied);
        counters.add(lstar, Access::Read, Disposition::Denied);
        let mut seen = Vec::new();
        assert_eq!(counters.each(|count| seen.push(count)), 0);
        seen.sort_unstable();
        let count = |access, disposition, count| Count {
            index: lstar,
            access,
            disposition,
            count,
        };
        assert_eq!(
            seen,
            [
                count(Access::Read, Disposition::Denied, 1),
                count(Access::Write, Disposition::Denied, 1),
                count(Access::Write, Disposition::Pinned, 3),
            ]
        );
    }

    /// If a guest makes accesses of more kinds than there are counters, the counts and the number of other
    /// accesses still add up to the number of all accesses.
    #[test]
    fn access_of_kind_without_counter_is_counted_among_others() {
        let counters = Counters::new();
        for index in 0..10_000 {
            counters.add(MsrIndex::new(index), Access::Read, Disposition::Denied);
        }
        let mut sum = 0;
        let others = counters.each(|count| sum += count.count);
        assert_eq!(sum + others, 10_000);
        assert!(others > 0 && sum > 100);
    }
}
