//! A lookup table of atomic words with room for the decisions of any filter: one slot of
//! [`publish`](crate::publish).

use alloc::boxed::Box;

use super::{Lookup, MAX_WORDS, VACANT, Word};
use crate::publish::{AtomicU64, Ordering, Slot};

impl Word for AtomicU64 {
    #[inline]
    fn get(&self) -> u64 {
        self.load(Ordering::Relaxed)
    }
}

/// A lookup table that threads share.
pub(crate) type SharedLookup = Lookup<AtomicU64>;

impl SharedLookup {
    /// Creates a lookup table that holds the decisions of `content` and has room for those of any
    /// filter.
    pub(crate) fn holding(content: &Lookup) -> Self {
        let slot = Self {
            multiplier: AtomicU64::new(0),
            mixed: AtomicU64::new(0),
            table: Box::new(core::array::from_fn(|_| AtomicU64::new(VACANT))),
            pages: (0..MAX_WORDS).map(|_| AtomicU64::new(0)).collect(),
        };
        slot.fill(content);
        slot
    }
}

impl Slot for SharedLookup {
    type Content = Lookup;

    /// Copies the lookup table `content`. The words past the end of `content` stay as they are: no word
    /// of the copied hash table leads to them.
    fn fill(&self, content: &Lookup) {
        let store = |to: &AtomicU64, from: &u64| to.store(*from, Ordering::Relaxed);
        store(&self.multiplier, &content.multiplier);
        store(&self.mixed, &content.mixed);
        for (to, from) in self.table.iter().zip(&*content.table) {
            store(to, from);
        }
        for (to, from) in self.pages.iter().zip(&*content.pages) {
            store(to, from);
        }
    }
}
