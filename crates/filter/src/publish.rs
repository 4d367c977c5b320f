//! The publication of a VM's filter to all its vCPUs, without `unsafe` and without `std`.
//!
//! **Left-right.** A VM has two slots of atomic words, each large enough for any filter. One slot
//! is active. A publication fills the other slot, makes that slot active, and waits until no reader
//! is left in the old one, which the next publication fills. So a reader sees exactly one filter
//! (S7). When [`LeftRight::publish`] returns, no reader uses the old filter any more. This wait
//! corresponds to the kernel's grace period.
//!
//! **Readers never wait.** Besides the decision, a read takes four steps on shared words: it loads
//! the turn, arrives (one `fetch_add`), loads which slot is active, and after the decision departs
//! (one `fetch_sub`). A reader never repeats a step, whatever writers do. The decision itself takes
//! at most six loads. Arrivals are counted in stripes of one cache line each. A vCPU's number
//! chooses its stripe, so that the vCPUs of a small VM do not write to each other's lines.
//!
//! **Writers wait**, spinning: for the writer before them, and for readers. Each stripe has two
//! counters, and readers arrive at the counter whose turn it is. A writer first waits until no
//! reader is left at the idle counter. The readers at the idle counter are all stragglers: they
//! loaded the turn before it last changed. Then the writer changes the turn and waits until no
//! reader is left at the other counter. From then on, only stragglers arrive at that other counter.
//! So a writer waits for each reader at most twice, and a stream of new readers cannot delay the
//! writer. The turn only ensures progress: the argument below does not depend on the counter at
//! which a reader arrived.
//!
//! **Memory.** A VM takes 2 x 86 KiB for the slots and 1 KiB for the stripes.
//!
//! **Why the orderings suffice.** Suppose that a writer has made a slot active (release), and has
//! then looked at a counter with a read-modify-write that found 0. A reader's arrival at that
//! counter is a read-modify-write too, so one of the two comes first:
//! - The arrival comes first. Then the departure also came before the look, because the writer
//!   found 0. The departure releases and the look acquires, so the reader finished all its loads
//!   from the slot before the writer's next store.
//! - The look comes first. The look releases and the arrival acquires, so the reader's load of the
//!   active slot, which follows the arrival, finds this publication or a later one. The reader
//!   never finds the old content, whose slot is filled next.
//!
//! Fills are relaxed stores: the release that makes the slot active, and the acquiring load of the
//! active slot, order them. If a writer looked at the counters with plain loads, it would need
//! `SeqCst` fences, because the store that makes a slot active could be delayed past these loads.
//! The model tests in `publish/model.rs` run all of this under loom.

#[cfg(not(all(test, loom)))]
pub(crate) use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
#[cfg(all(test, loom))]
pub(crate) use loom::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

#[cfg(not(all(test, loom)))]
use core::hint::spin_loop;
// Under loom a thread that waits has to let the other threads run.
#[cfg(all(test, loom))]
use loom::thread::yield_now as spin_loop;

/// A slot: a set of words that threads share, and whose content is replaced as a whole.
pub(crate) trait Slot {
    /// The type of the data with which a writer replaces the content of a slot.
    type Content;

    /// Replaces all words of the slot that a reader may look at, by relaxed stores. The caller ensures
    /// that no reader uses the slot.
    fn fill(&self, content: &Self::Content);
}

/// A left-right pair: two slots, and counters of the readers that use them.
pub(crate) struct LeftRight<S, const STRIPES: usize> {
    slots: [S; 2],
    /// The number, 0 or 1, of the slot that new readers use.
    active: AtomicUsize,
    /// The number, 0 or 1, of the counter at which readers arrive in each stripe.
    turn: AtomicUsize,
    stripes: [Stripe; STRIPES],
    writers: Lock,
}

/// The number of readers that have arrived and not departed, for each of the two turns.
#[repr(align(64))]
struct Stripe([AtomicUsize; 2]);

impl<S: Slot, const STRIPES: usize> LeftRight<S, STRIPES> {
    /// Creates the pair of slots. Readers find the content of the first slot until [`Self::publish`] is
    /// called.
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

    /// Returns the result of `look` on the active slot, whose content does not change during the
    /// call.
    ///
    /// `reader` picks the stripe. The result is correct for any number; reads are faster if
    /// different readers have different numbers.
    #[inline]
    pub(crate) fn read<T>(&self, reader: usize, look: impl FnOnce(&S) -> T) -> T {
        let turn = self.turn.load(Ordering::Relaxed);
        let _visit = Visit::arrive(&self.stripes[reader % STRIPES].0[turn]);
        look(&self.slots[self.active.load(Ordering::Acquire)])
    }

    /// Replaces the content that readers find. When this call has returned, every read that begins
    /// finds `content` or something newer, and no read of the old content is still running.
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

    /// Waits until the counter `turn` of each stripe has been 0 at some moment. The moments may differ:
    /// a reader that arrives at a stripe already checked finds the new slot.
    fn wait_for_readers(&self, turn: usize) {
        for stripe in &self.stripes {
            while stripe.0[turn].fetch_add(0, Ordering::AcqRel) != 0 {
                spin_loop();
            }
        }
    }
}

/// A reader's visit to a slot, which begins with the reader's arrival. Dropping this value counts the
/// reader's departure, even if the closure `look` panics.
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

/// A lock that only one writer can hold at a time: 0 is free, 1 is held.
struct Lock(AtomicUsize);

/// The proof that a writer holds the lock. Dropping this value releases the lock for the next
/// writer.
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
