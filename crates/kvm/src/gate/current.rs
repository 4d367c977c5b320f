//! What is in force, replaced from any thread and followed by each vCPU.
//!
//! A vCPU looks at one number each time, and takes the lock only when that has changed. The lock is
//! never held over a call into the kernel: a vCPU waits for a copy of a pointer, at most.

use std::sync::{Arc, PoisonError};

use super::sync::{AtomicU64, Mutex, Ordering};

/// One thing of many, by number.
pub(super) struct Current<T> {
    /// Of what is in force. It changes under the lock, after the thing itself.
    number: AtomicU64,
    held: Mutex<Numbered<T>>,
}

/// A thing and its number.
#[derive(Debug)]
pub(super) struct Numbered<T> {
    pub(super) number: u64,
    pub(super) thing: Arc<T>,
}

impl<T> Clone for Numbered<T> {
    fn clone(&self) -> Self {
        Self {
            number: self.number,
            thing: Arc::clone(&self.thing),
        }
    }
}

impl<T> Current<T> {
    pub(super) fn new(thing: T) -> Self {
        let first = Numbered {
            number: 0,
            thing: Arc::new(thing),
        };
        Self {
            number: AtomicU64::new(0),
            held: Mutex::new(first),
        }
    }

    /// Puts another thing in force. Whoever [follows](Self::newer_than) after this has returned
    /// sees it, or a later one. Its number is returned.
    pub(super) fn replace(&self, thing: Arc<T>) -> u64 {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let number = held.number + 1;
        *held = Numbered { number, thing };
        self.number.store(number, Ordering::Release);
        number
    }

    /// What is in force.
    pub(super) fn get(&self) -> Numbered<T> {
        let held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        held.clone()
    }

    /// What is in force, if it is not what `have` is.
    #[inline]
    pub(super) fn newer_than(&self, have: &Numbered<T>) -> Option<Numbered<T>> {
        // Acquire: a vCPU whose access the kernel refused by a new filter sees the program that was
        // put in force before it.
        (self.number.load(Ordering::Acquire) != have.number).then(|| self.get())
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
            let current = Arc::new(Current::new([0; 2]));
            let writers = [1, 2].map(|value| {
                let current = Arc::clone(&current);
                loom::thread::spawn(move || current.replace(Arc::new([value; 2])))
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
                let _ = writer.join().unwrap();
            }
            let last = current.newer_than(&have).unwrap_or(have);
            assert_eq!(last.number, 2);
        });
    }

    /// What `replace` published before something else was done is seen by who saw that.
    #[test]
    fn what_came_before_a_filter_is_seen_after_its_exit() {
        crate::gate::sync::check(|| {
            let current = Arc::new(Current::new(0));
            let filter = Arc::new(AtomicU64::new(0));
            let writer = {
                let (current, filter) = (Arc::clone(&current), Arc::clone(&filter));
                loom::thread::spawn(move || {
                    let _ = current.replace(Arc::new(1));
                    filter.store(1, Ordering::Release);
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
}
