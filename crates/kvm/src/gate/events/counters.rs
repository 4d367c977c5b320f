//! How often each access came and what was done, by vCPU, without a lock and of a fixed size.

use std::sync::atomic::{AtomicU64, Ordering};

use msrgate_filter::{Access, MsrIndex};
use msrgate_program::answer::Disposition;

use crate::gate::kinds::{Found, Kind, Kinds};

/// Kinds of (MSR, access, disposition) that a vCPU counts apart; the rest it counts together.
const SLOTS: usize = 256;

/// One vCPU's counters. It alone writes them.
pub(in crate::gate) struct Counters {
    /// Tagged with the number of the disposition.
    kinds: Kinds<SLOTS>,
    counts: Box<[AtomicU64; SLOTS]>,
    others: AtomicU64,
}

/// How often something was done to an access.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Count {
    /// The MSR.
    pub index: MsrIndex,
    /// The direction.
    pub access: Access,
    /// What was done.
    pub disposition: Disposition,
    /// How often.
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

    /// Counts one. Only one thread may do this at a time.
    pub(in crate::gate) fn add(&self, index: MsrIndex, access: Access, disposition: Disposition) {
        let kind = Kind::new(u64::from(disposition.number()), index, access);
        let count = match self.kinds.find(kind, 8) {
            Found::New(place) | Found::Known(place) => &self.counts[place % SLOTS],
            Found::NoRoom => &self.others,
        };
        add_one(count);
    }

    /// What there is to count, and how often there was no slot for it.
    pub(super) fn each(&self, mut found: impl FnMut(Count)) -> u64 {
        for (place, kind) in self.kinds.all() {
            let disposition = usize::try_from(kind.tag()).ok();
            let disposition = disposition.and_then(|number| Disposition::ALL.get(number).copied());
            let count = self.counts[place % SLOTS].load(Ordering::Relaxed);
            // Its first access is being counted, and not yet counted, where it is 0.
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

/// One writer: no read-modify-write is needed.
pub(super) fn add_one(counter: &AtomicU64) {
    counter.store(counter.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_told_apart_and_nothing_is_lost() {
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

    /// A guest that accesses everything: the sum is right, whatever has a slot.
    #[test]
    fn what_has_no_slot_is_counted_together() {
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
