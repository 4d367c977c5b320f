//! A bounded queue from one vCPU to one reader, made of atomic words. The queue uses no lock, allocates no
//! memory after it is made, and never waits.
//!
//! An entry that does not fit is dropped and counted. One slot is kept for an important entry, which must
//! find room even if other entries have filled the queue.

use crate::gate::sync::{AtomicU64, Ordering};

/// The number of 64-bit words in an entry of a queue.
pub(super) const WORDS: usize = 10;

/// One entry of a queue, which encodes an event.
pub(super) type Entry = [u64; WORDS];

/// The slots of a ring that an entry may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Room {
    /// The slots that all entries share, as many as the requested capacity.
    Shared,
    /// The shared slots, and one further slot that is kept for an important entry, such as the event of a
    /// kill.
    Kept,
}

/// A bounded queue of entries, each of `N` words. An event has [`WORDS`] words; the test under loom has
/// shorter entries.
pub(super) struct Ring<const N: usize = WORDS> {
    /// The number of entries that were ever put into the ring. The vCPU writes this number.
    put: AtomicU64,
    /// The number of entries that were ever taken out of the ring. The reader writes this number.
    taken: AtomicU64,
    /// The number of entries that did not fit the ring. The vCPU writes this number.
    dropped: AtomicU64,
    slots: Box<[[AtomicU64; N]]>,
}

impl<const N: usize> Ring<N> {
    /// Makes a ring with room for `capacity` entries, at least one, and with one [kept](Room::Kept) slot
    /// besides.
    pub(super) fn new(capacity: usize) -> Self {
        Self {
            put: AtomicU64::new(0),
            taken: AtomicU64::new(0),
            dropped: AtomicU64::new(0),
            slots: (0..=capacity.max(1))
                .map(|_| std::array::from_fn(|_| AtomicU64::new(0)))
                .collect(),
        }
    }

    /// Puts an entry in, if there is room. Only one thread may call this function at a time.
    #[inline]
    pub(super) fn put(&self, entry: &[u64; N], room: Room) {
        let kept = u64::from(room == Room::Shared);
        let put = self.put.load(Ordering::Relaxed);
        // Acquire: the words of a slot are overwritten only after the reader has read the entry that it took
        // from there.
        if put - self.taken.load(Ordering::Acquire) >= self.slots() - kept {
            let dropped = self.dropped.load(Ordering::Relaxed);
            self.dropped.store(dropped + 1, Ordering::Relaxed);
            return;
        }
        for (word, &value) in self.slot(put).iter().zip(entry) {
            word.store(value, Ordering::Relaxed);
        }
        // Release: a reader that sees the new number of entries also sees the words of the new entry.
        self.put.store(put + 1, Ordering::Release);
    }

    /// Takes the oldest entry out. Only one thread may call this function at a time.
    pub(super) fn take(&self) -> Option<[u64; N]> {
        let taken = self.taken.load(Ordering::Relaxed);
        if self.put.load(Ordering::Acquire) == taken {
            return None;
        }
        let mut entry = [0; N];
        for (value, word) in entry.iter_mut().zip(self.slot(taken)) {
            *value = word.load(Ordering::Relaxed);
        }
        self.taken.store(taken + 1, Ordering::Release);
        Some(entry)
    }

    /// The number of entries in the ring.
    pub(super) fn len(&self) -> u64 {
        let taken = self.taken.load(Ordering::Acquire);
        self.put.load(Ordering::Acquire) - taken
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The number of entries that were dropped because they did not fit.
    pub(super) fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    fn slots(&self) -> u64 {
        self.slots.len() as u64
    }

    fn slot(&self, number: u64) -> &[AtomicU64; N] {
        let place = usize::try_from(number % self.slots()).unwrap_or(0);
        &self.slots[place]
    }
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use super::*;

    #[test]
    fn entry_that_does_not_fit_event_queue_is_counted_as_dropped() {
        let ring = Ring::new(3);
        for number in 0..5 {
            ring.put(&[number; WORDS], Room::Shared);
        }
        assert_eq!(ring.dropped(), 2);
        for number in 0..3 {
            assert_eq!(ring.take(), Some([number; WORDS]));
        }
        assert_eq!(ring.take(), None);
        ring.put(&[9; WORDS], Room::Shared);
        assert_eq!(ring.take(), Some([9; WORDS]));
    }

    /// If all other slots of a ring are full, the kept slot still takes one entry, and no second one. The
    /// ring behaves so each time that it is filled.
    #[test]
    fn kept_slot_of_event_queue_takes_one_entry_when_queue_is_full() {
        for capacity in 0..4_u64 {
            let ring = Ring::new(usize::try_from(capacity).unwrap());
            let fit = capacity.max(1);
            for round in 0..7 {
                for number in 0..fit + 2 {
                    ring.put(&[number; WORDS], Room::Shared);
                }
                ring.put(&[100; WORDS], Room::Kept);
                ring.put(&[101; WORDS], Room::Shared);
                ring.put(&[102; WORDS], Room::Kept);
                assert_eq!(ring.dropped(), 4 * (round + 1));
                let taken: Vec<_> = std::iter::from_fn(|| ring.take())
                    .map(|entry| entry[0])
                    .collect();
                let expected: Vec<_> = (0..fit).chain([100]).collect();
                assert_eq!(taken, expected);
            }
        }
    }
}

#[cfg(all(test, loom))]
mod model {
    use loom::sync::Arc;

    use super::*;

    /// Under every interleaving the reader takes whole entries, in order. Missing entries are counted, and
    /// the last entry, for which a slot is kept, is there. The test fails if the memory ordering of the
    /// field `put` is weaker, at its store or at its load, if the ring accepts one entry too many, or if it
    /// has no kept slot. Loom never lets a load see a later store, so it cannot check the release and the
    /// acquire of the field `taken`: only reasoning shows that they are right.
    #[test]
    fn concurrent_take_from_event_queue_returns_whole_entries_in_order() {
        crate::gate::sync::check(|| {
            let ring = Arc::new(Ring::<2>::new(1));
            let vcpu = {
                let ring = Arc::clone(&ring);
                loom::thread::spawn(move || {
                    ring.put(&[1; 2], Room::Shared);
                    ring.put(&[2; 2], Room::Shared);
                    ring.put(&[3; 2], Room::Kept);
                })
            };
            // The reader runs on a thread of its own, which is joined last. Loom detects that two accesses
            // depend on each other only by the last access to each word, and the vCPU's own load of `put`
            // would hide the reader's load.
            let reader = {
                let ring = Arc::clone(&ring);
                loom::thread::spawn(move || {
                    let takes = [ring.take(), ring.take()];
                    takes.into_iter().flatten().collect::<Vec<_>>()
                })
            };
            vcpu.join().unwrap();
            let mut taken = reader.join().unwrap();
            while let Some(entry) = ring.take() {
                taken.push(entry);
            }
            assert!(taken.is_sorted());
            assert_eq!(taken.last(), Some(&[3; 2]));
            // An empty slot contains zeros. The reader never takes such a slot as an entry.
            assert!(taken.iter().all(|entry| entry[0] > 0));
            assert!(
                taken
                    .iter()
                    .all(|entry| entry.iter().all(|word| *word == entry[0]))
            );
            assert_eq!(taken.len() as u64 + ring.dropped(), 3);
        });
    }
}
