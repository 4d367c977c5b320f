//! A bounded queue from one vCPU to one reader, of atomic words: no lock, no allocation, no waiting.
//!
//! What does not fit is not put in, and counted. One slot is kept for what must not be hidden by what
//! came before it.

use crate::gate::sync::{AtomicU64, Ordering};

/// Words of one entry.
pub(super) const WORDS: usize = 10;

/// One entry.
pub(super) type Entry = [u64; WORDS];

/// How much of a ring an entry may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Room {
    /// What was asked for.
    Shared,
    /// The slot beyond that, too.
    Kept,
}

/// Entries of so many words: an event has [`WORDS`], and the model of it under loom fewer.
pub(super) struct Ring<const N: usize = WORDS> {
    /// How many were ever put in; written by the vCPU.
    put: AtomicU64,
    /// How many were ever taken out; written by the reader.
    taken: AtomicU64,
    /// How many did not fit; written by the vCPU.
    dropped: AtomicU64,
    slots: Box<[[AtomicU64; N]]>,
}

impl<const N: usize> Ring<N> {
    /// Room for `capacity` entries, at least one, and a slot more that is [kept](Room::Kept).
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

    /// Puts an entry in, if there is room. Only one thread may do this at a time.
    #[inline]
    pub(super) fn put(&self, entry: &[u64; N], room: Room) {
        let kept = u64::from(room == Room::Shared);
        let put = self.put.load(Ordering::Relaxed);
        // Acquire: what the reader took out it has read before the words are written anew.
        if put - self.taken.load(Ordering::Acquire) >= self.slots() - kept {
            let dropped = self.dropped.load(Ordering::Relaxed);
            self.dropped.store(dropped + 1, Ordering::Relaxed);
            return;
        }
        for (word, &value) in self.slot(put).iter().zip(entry) {
            word.store(value, Ordering::Relaxed);
        }
        // Release: whoever sees the number sees the words.
        self.put.store(put + 1, Ordering::Release);
    }

    /// Takes the oldest entry out. Only one thread may do this at a time.
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

    /// How many are in it.
    pub(super) fn len(&self) -> u64 {
        let taken = self.taken.load(Ordering::Acquire);
        self.put.load(Ordering::Acquire) - taken
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many did not fit, ever.
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
    fn what_fits_comes_out_in_order_and_the_rest_is_counted() {
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

    /// Each time anew, whatever has been put and taken; and there is one.
    #[test]
    fn what_is_kept_is_there_when_all_else_is_full() {
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

    /// Under every interleaving the reader takes whole entries, in order; those that are missing
    /// are counted; the last one, for which a slot is kept, is there. It fails with a weaker `put`, on
    /// either side, with one entry too many, and without that slot. Loom
    /// never lets a load see a store that comes later, so that the release of `taken` and its acquire
    /// rest on the argument alone.
    #[test]
    fn entries_are_whole_in_order_and_none_is_lost_uncounted() {
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
            // On a thread of its own, and joined last: loom takes two accesses for dependent by the
            // last one to each word, and the vCPU's own load of `put` would hide the reader's.
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
            // What an empty queue holds is no entry.
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
