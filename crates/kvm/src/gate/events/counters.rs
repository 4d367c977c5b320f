//! How often each access came and what was done, by vCPU, without a lock and of a fixed size.

use std::sync::atomic::{AtomicU64, Ordering};

use msrgate_filter::{Access, MsrIndex};
use msrgate_program::answer::Deed;

/// Kinds of (MSR, access, deed) that a vCPU counts apart; the rest it counts together.
const SLOTS: usize = 256;

/// One vCPU's counters. It alone writes them.
pub(in crate::gate) struct Counters {
    slots: Box<[Slot; SLOTS]>,
    others: AtomicU64,
}

/// A kind, 0 if none, and its number.
#[derive(Default)]
struct Slot {
    kind: AtomicU64,
    count: AtomicU64,
}

/// How often something was done to an access.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Count {
    /// The MSR.
    pub index: MsrIndex,
    /// The direction.
    pub access: Access,
    /// What was done.
    pub deed: Deed,
    /// How often.
    pub count: u64,
}

impl Counters {
    pub(in crate::gate) fn new() -> Self {
        Self {
            slots: Box::new(std::array::from_fn(|_| Slot::default())),
            others: AtomicU64::new(0),
        }
    }

    /// Counts one. Only one thread may do this at a time.
    pub(in crate::gate) fn add(&self, index: MsrIndex, access: Access, deed: Deed) {
        let kind = pack(index, access, deed);
        let home = spread(kind);
        // A few places only: a guest that accesses all there is must not make each access slow.
        for offset in 0..8 {
            let slot = &self.slots[(home + offset) % SLOTS];
            let held = slot.kind.load(Ordering::Relaxed);
            if held == 0 {
                slot.count.store(1, Ordering::Relaxed);
                slot.kind.store(kind, Ordering::Release);
                return;
            }
            if held == kind {
                add_one(&slot.count);
                return;
            }
        }
        add_one(&self.others);
    }

    /// What there is to count, and how often there was no slot for it.
    pub(super) fn each(&self, mut found: impl FnMut(Count)) -> u64 {
        for slot in self.slots.iter() {
            let kind = slot.kind.load(Ordering::Acquire);
            if let Some(count) = unpack(kind, slot.count.load(Ordering::Relaxed)) {
                found(count);
            }
        }
        self.others.load(Ordering::Relaxed)
    }
}

/// One writer: no read-modify-write is needed.
pub(super) fn add_one(counter: &AtomicU64) {
    counter.store(counter.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
}

const TAKEN: u64 = 1 << 63;

fn pack(index: MsrIndex, access: Access, deed: Deed) -> u64 {
    TAKEN | u64::from(deed.number()) << 40 | (access as u64) << 32 | u64::from(index.get())
}

fn unpack(kind: u64, count: u64) -> Option<Count> {
    if kind & TAKEN == 0 {
        return None;
    }
    let bytes = kind.to_le_bytes();
    let [i0, i1, i2, i3, access, deed, ..] = bytes;
    Some(Count {
        index: MsrIndex::new(u32::from_le_bytes([i0, i1, i2, i3])),
        access: *Access::ALL.get(usize::from(access))?,
        deed: *Deed::ALL.get(usize::from(deed))?,
        count,
    })
}

/// Fibonacci hashing: the top bits of a product with 2^64 divided by the golden ratio.
fn spread(kind: u64) -> usize {
    let product = kind.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    usize::from(product.to_be_bytes()[0])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_told_apart_and_nothing_is_lost() {
        let counters = Counters::new();
        let lstar = MsrIndex::new(0xc000_0082);
        for _ in 0..3 {
            counters.add(lstar, Access::Write, Deed::Pinned);
        }
        counters.add(lstar, Access::Write, Deed::Denied);
        counters.add(lstar, Access::Read, Deed::Denied);
        let mut seen = Vec::new();
        assert_eq!(counters.each(|count| seen.push(count)), 0);
        seen.sort_unstable();
        let count = |access, deed, count| Count {
            index: lstar,
            access,
            deed,
            count,
        };
        assert_eq!(
            seen,
            [
                count(Access::Read, Deed::Denied, 1),
                count(Access::Write, Deed::Denied, 1),
                count(Access::Write, Deed::Pinned, 3),
            ]
        );
    }

    /// A guest that accesses everything: the sum is right, whatever has a slot.
    #[test]
    fn what_has_no_slot_is_counted_together() {
        let counters = Counters::new();
        for index in 0..10_000 {
            counters.add(MsrIndex::new(index), Access::Read, Deed::Denied);
        }
        let mut sum = 0;
        let others = counters.each(|count| sum += count.count);
        assert_eq!(sum + others, 10_000);
        assert!(others > 0 && sum > 100);
    }
}
