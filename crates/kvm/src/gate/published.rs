//! What is in force, replaced from any thread and followed by each vCPU.
//!
//! A vCPU looks at one number each time, and takes the lock only when that has changed. The lock is
//! never held over a call into the kernel: a vCPU waits for a copy of a pointer, at most.
//!
//! A replacement is a [`Trial`] first. One that is not kept is withdrawn, and what it stood in for is
//! in force again, under the number that it had.

use std::sync::{Arc, PoisonError};

use super::sync::{AtomicU64, Mutex, Ordering};

/// One thing of many, by number.
pub(super) struct Published<T> {
    /// Of what is in force. It changes under the lock.
    ///
    /// Relaxed: the thing comes by the lock. That a vCPU whose access the kernel refused by a new
    /// filter sees the number that was stored before that filter was set is the kernel's order, which
    /// shows the filter to one after it took it from the other (S7f). Release here would order what
    /// is before the store, acquire what is after the load: neither makes a load see more.
    number: AtomicU64,
    held: Mutex<Held<T>>,
}

struct Held<T> {
    now: Generation<T>,
    /// The highest number that a thing has had.
    highest: u64,
}

/// A thing and its number, which no other thing has.
#[derive(Debug)]
pub(super) struct Generation<T> {
    pub(super) number: u64,
    pub(super) thing: Arc<T>,
    /// What became of its trial: one of the three below.
    fate: Arc<AtomicU64>,
}

const TRIED: u64 = 0;
const KEPT: u64 = 1;
const WITHDRAWN: u64 = 2;

impl<T> Generation<T> {
    fn new(number: u64, thing: Arc<T>, fate: u64) -> Self {
        Self {
            number,
            thing,
            fate: Arc::new(AtomicU64::new(fate)),
        }
    }

    /// Whether it was withdrawn. Who has been given another by [`Published::newer_than`] since is told
    /// the truth.
    pub(super) fn is_withdrawn(&self) -> bool {
        // Relaxed: it was stored before the other was put in force, which came by the lock.
        self.fate.load(Ordering::Relaxed) == WITHDRAWN
    }

    /// Whether it will not be withdrawn any more, as far as is known here.
    #[inline]
    pub(super) fn is_kept(&self) -> bool {
        // Relaxed: nothing else goes by it, and it does not change again.
        self.fate.load(Ordering::Relaxed) == KEPT
    }
}

impl<T> Clone for Generation<T> {
    fn clone(&self) -> Self {
        Self {
            number: self.number,
            thing: Arc::clone(&self.thing),
            fate: Arc::clone(&self.fate),
        }
    }
}

impl<T> Published<T> {
    pub(super) fn new(thing: T) -> Self {
        Self {
            number: AtomicU64::new(0),
            held: Mutex::new(Held {
                now: Generation::new(0, Arc::new(thing), KEPT),
                highest: 0,
            }),
        }
    }

    /// Puts another thing in force, until the trial ends at least. Whoever [follows](Self::newer_than)
    /// after this has returned sees it, or a later one. One trial at a time.
    #[must_use = "it is withdrawn at once"]
    pub(super) fn try_out(&self, thing: Arc<T>) -> Trial<'_, T> {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        held.highest += 1;
        let tried = Generation::new(held.highest, thing, TRIED);
        let fate = Arc::clone(&tried.fate);
        let before = std::mem::replace(&mut held.now, tried);
        self.number.store(held.highest, Ordering::Relaxed);
        Trial {
            current: self,
            number: held.highest,
            fate,
            before: Some(before),
        }
    }

    fn withdraw(&self, before: Generation<T>) {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        held.now.fate.store(WITHDRAWN, Ordering::Relaxed);
        self.number.store(before.number, Ordering::Relaxed);
        held.now = before;
    }

    /// What is in force.
    pub(super) fn get(&self) -> Generation<T> {
        let held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        held.now.clone()
    }

    /// Whether what has this number is in force.
    #[inline]
    pub(super) fn is_number(&self, number: u64) -> bool {
        self.number.load(Ordering::Relaxed) == number
    }

    /// What is in force, if it is not what `have` is.
    pub(super) fn newer_than(&self, have: &Generation<T>) -> Option<Generation<T>> {
        if self.is_number(have.number) {
            return None;
        }
        // What was tried may have been withdrawn again before this came to look.
        Some(self.get()).filter(|now| now.number != have.number)
    }
}

/// A thing that is in force for now. When this is dropped it is withdrawn.
pub(super) struct Trial<'c, T> {
    current: &'c Published<T>,
    number: u64,
    fate: Arc<AtomicU64>,
    before: Option<Generation<T>>,
}

impl<T> Trial<'_, T> {
    /// The thing's number.
    pub(super) const fn number(&self) -> u64 {
        self.number
    }

    /// The thing stays in force: its number.
    pub(super) fn keep(mut self) -> u64 {
        self.before = None;
        self.fate.store(KEPT, Ordering::Relaxed);
        self.number
    }
}

impl<T> Drop for Trial<'_, T> {
    fn drop(&mut self) {
        if let Some(before) = self.before.take() {
            self.current.withdraw(before);
        }
    }
}

#[cfg(all(test, loom))]
mod model {
    use super::*;

    /// Two replacements, by threads of their own, and a vCPU that follows: it sees one of the three,
    /// whole, never an older one after a newer one, and the last one once both have ended.
    #[test]
    fn a_follower_never_goes_back_and_ends_at_the_last() {
        crate::gate::sync::check(|| {
            let current = Arc::new(Published::new([0; 2]));
            let writers = [1, 2].map(|value| {
                let current = Arc::clone(&current);
                loom::thread::spawn(move || current.try_out(Arc::new([value; 2])).keep())
            });
            let mut have = current.get();
            for _ in 0..2 {
                let before = have.number;
                if let Some(newer) = current.newer_than(&have) {
                    have = newer;
                    assert!(have.number > before);
                }
                assert_eq!(have.thing[0], have.thing[1]);
            }
            for writer in writers {
                writer.join().unwrap();
            }
            let last = current.newer_than(&have).unwrap_or(have);
            assert_eq!(last.number, 2);
        });
    }

    /// What was put in force before something else was done is seen by who saw that. Relaxed for the
    /// filter, which is the kernel's order taken away, makes it fail whatever the order of the number.
    #[test]
    fn what_came_before_a_filter_is_seen_after_its_exit() {
        crate::gate::sync::check(|| {
            let current = Arc::new(Published::new(0));
            let filter = Arc::new(AtomicU64::new(0));
            let writer = {
                let (current, filter) = (Arc::clone(&current), Arc::clone(&filter));
                loom::thread::spawn(move || {
                    let trial = current.try_out(Arc::new(1));
                    filter.store(1, Ordering::Release);
                    trial.keep();
                })
            };
            let have = current.get();
            if filter.load(Ordering::Acquire) == 1 {
                let seen = current.newer_than(&have).unwrap_or(have);
                assert_eq!(*seen.thing, 1);
            }
            writer.join().unwrap();
        });
    }

    /// Whenever a vCPU looks, it finds what is tried or what that stood in for, by its number; once
    /// the trial is over, the latter, and knows what it had for withdrawn.
    #[test]
    fn what_is_withdrawn_is_known_as_such() {
        crate::gate::sync::check(|| {
            let current = Arc::new(Published::new(0));
            let writer = {
                let current = Arc::clone(&current);
                loom::thread::spawn(move || drop(current.try_out(Arc::new(1))))
            };
            let mut have = current.get();
            for _ in 0..2 {
                if let Some(other) = current.newer_than(&have) {
                    assert_eq!(have.is_withdrawn(), have.number == 1);
                    have = other;
                }
                assert_eq!(have.number, *have.thing);
            }
            writer.join().unwrap();
            let last = current.newer_than(&have);
            assert_eq!(last.is_some(), have.number == 1);
            assert_eq!(have.is_withdrawn(), have.number == 1);
            assert_eq!(last.unwrap_or(have).number, 0);
        });
    }
}
