//! A lookup of atomic words, large enough for any filter: one slot of [`publish`](crate::publish).

use alloc::boxed::Box;

use super::{Lookup, MAX_WORDS, VACANT, Word};
use crate::publish::{AtomicU64, Ordering, Slot};

impl Word for AtomicU64 {
    #[inline]
    fn get(&self) -> u64 {
        self.load(Ordering::Relaxed)
    }
}

/// A lookup that threads share.
pub(crate) type SharedLookup = Lookup<AtomicU64>;

impl SharedLookup {
    /// Creates a slot with the decisions of `content` and room for any other content.
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

    /// Copies the content. Words past its end stay as they are, because no entry of its table leads
    /// to them.
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
