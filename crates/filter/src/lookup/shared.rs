//! A lookup of atomics, large enough for any filter: one slot of [`publish`](crate::publish).

use alloc::boxed::Box;

use super::{Lookup, MAX_WORDS, VACANT, Word};
use crate::publish::{AtomicU64, Ordering, Slot};

impl Word for AtomicU64 {
    #[inline]
    fn get(&self) -> u64 {
        self.load(Ordering::Relaxed)
    }
}

/// Decisions that threads share.
pub(crate) type SharedLookup = Lookup<AtomicU64>;

impl SharedLookup {
    /// A slot that says what `content` does, with room for any other.
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

    /// Words past the new content's end stay as they are: its table leads to none of them.
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
