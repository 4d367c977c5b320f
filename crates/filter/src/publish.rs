//! How every vCPU gets the one filter of its VM, without `unsafe` and without `std`.
//!
//! **Left-right.** A VM has two slots, each large enough for any filter, all of atomic words. One
//! is active. A publication fills the other, makes it the active one, and waits until no reader is
//! left in the old one, which the next publication fills. So a reader sees one filter, whole (S7),
//! and when [`LeftRight::publish`] returns nobody uses the old one any more: the kernel's grace
//! period.
//!
//! **Readers never wait.** A read is four steps on shared words around the decision: load the turn,
//! arrive (one `fetch_add`), load which slot is active, ..., depart (one `fetch_sub`). No step is
//! ever repeated, whatever writers do. The decision between them is at most five loads. Arrivals
//! are counted in stripes of one cache line, chosen by vCPU number, so that the vCPUs of a small VM
//! do not write to each other's lines.
//!
//! **Writers wait**, spinning: for the writer before them, and for readers. There are two counters
//! a stripe, and readers arrive at the one whose turn it is. A writer waits for the idle one
//! (stragglers only: those that loaded the turn before it last changed), changes the turn, and
//! waits for the other, at which nobody arrives any more but stragglers. So it waits for each
//! reader at most twice, and a stream of new readers cannot hold it up. The turn is for progress
//! only: nothing below relies on which counter a reader arrived at.
//!
//! **Memory.** 2 x 86 KiB a VM for the slots and 1 KiB for the stripes.
//!
//! **Why the orderings suffice.** Let a writer have made a slot active (release) and then looked at
//! a counter with a read-modify-write that found 0. A reader's arrival at that counter is a
//! read-modify-write too, so one of the two comes first:
//! - the arrival. Then, for the writer to find 0, the departure came before it as well. A
//!   departure releases and the writer's look acquires, so all that the reader loaded from the slot
//!   it loaded before the writer's next store.
//! - the look. It releases and the arrival acquires, so the reader's load of the active slot, which
//!   follows, finds this publication or a later one: never the old content, whose slot is filled
//!   next.
//!
//! Fills are relaxed stores: the release that makes the slot active, and its acquiring load, carry
//! them. Plain loads of the counters would not do without `SeqCst` fences, as the store of the
//! active slot could pass them. The model tests in `publish/model.rs` run all of this under loom.

#[cfg(not(all(test, loom)))]
pub(crate) use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
#[cfg(all(test, loom))]
pub(crate) use loom::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

#[cfg(not(all(test, loom)))]
use core::hint::spin_loop;
// Under loom a thread that waits has to let the others run.
#[cfg(all(test, loom))]
use loom::thread::yield_now as spin_loop;

/// Words that threads share, replaced as a whole.
pub(crate) trait Slot {
    /// What replaces them.
    type Content;

    /// Replaces all words a reader may look at, by relaxed stores. No reader is looking.
    fn fill(&self, content: &Self::Content);
}

/// Two slots, and who is looking at them.
pub(crate) struct LeftRight<S, const STRIPES: usize> {
    slots: [S; 2],
    /// The slot that readers use.
    active: AtomicUsize,
    /// The counter at which readers arrive.
    turn: AtomicUsize,
    stripes: [Stripe; STRIPES],
    writers: Lock,
}

/// Counts of the readers that have arrived and not departed, by turn.
#[repr(align(64))]
struct Stripe([AtomicUsize; 2]);

impl<S: Slot, const STRIPES: usize> LeftRight<S, STRIPES> {
    /// Readers find the first slot until something is published.
    pub(crate) fn new(slots: [S; 2]) -> Self {
        let none = || AtomicUsize::new(0);
        Self {
            slots,
            active: none(),
            turn: none(),
            stripes: core::array::from_fn(|_| Stripe([none(), none()])),
            writers: Lock(none()),
        }
    }

    /// What `look` makes of the active slot, which does not change while it looks. `reader` picks
    /// the stripe; any number is right, and different ones are faster.
    #[inline]
    pub(crate) fn read<T>(&self, reader: usize, look: impl FnOnce(&S) -> T) -> T {
        let turn = self.turn.load(Ordering::Relaxed);
        let _visit = Visit::arrive(&self.stripes[reader % STRIPES].0[turn]);
        look(&self.slots[self.active.load(Ordering::Acquire)])
    }

    /// Replaces what readers find. On return all reads that begin find `content`, and none that
    /// found what was there before is still at it.
    pub(crate) fn publish(&self, content: &S::Content) {
        let _writing = self.writers.lock();
        let fresh = 1 - self.active.load(Ordering::Relaxed);
        self.slots[fresh].fill(content);
        self.active.store(fresh, Ordering::Release);

        let turn = self.turn.load(Ordering::Relaxed);
        self.wait_for_readers(1 - turn);
        self.turn.store(1 - turn, Ordering::Relaxed);
        self.wait_for_readers(turn);
    }

    /// Until each stripe had a moment without a reader of this turn. They need not be empty at the
    /// same moment: who arrives at one behind our back finds the fresh slot.
    fn wait_for_readers(&self, turn: usize) {
        for stripe in &self.stripes {
            while stripe.0[turn].fetch_add(0, Ordering::AcqRel) != 0 {
                spin_loop();
            }
        }
    }
}

/// A reader that has arrived; dropped, it departs, even if `look` panics.
struct Visit<'a>(&'a AtomicUsize);

impl<'a> Visit<'a> {
    #[inline]
    fn arrive(readers: &'a AtomicUsize) -> Self {
        readers.fetch_add(1, Ordering::Acquire);
        Self(readers)
    }
}

impl Drop for Visit<'_> {
    #[inline]
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Release);
    }
}

/// Lets one writer in at a time: 0 is free, 1 is held.
struct Lock(AtomicUsize);

/// Dropped, the next writer may enter.
struct Held<'a>(&'a AtomicUsize);

impl Lock {
    fn lock(&self) -> Held<'_> {
        while self
            .0
            .compare_exchange(0, 1, Ordering::Acquire, Ordering::Relaxed)
            .is_err()
        {
            spin_loop();
        }
        Held(&self.0)
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.0.store(0, Ordering::Release);
    }
}

#[cfg(all(test, loom))]
mod model;
