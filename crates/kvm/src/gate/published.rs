//! The program in force, which any thread may replace and which each vCPU follows.
//!
//! A vCPU compares one number at each exit, and takes the lock only if the number has changed. The lock
//! is never held over a call into the kernel: a vCPU waits at most for a copy of a pointer.
//!
//! A replacement starts as a [`Trial`]. If the trial is not kept, the replacement is withdrawn, and the
//! previous program is in force again under its old number.

use std::sync::{Arc, PoisonError};

use super::sync::{AtomicU64, Mutex, Ordering};

/// A value that is in force, such as a program, and the number of its generation.
pub(super) struct Published<T> {
    /// The number of the generation in force: each replacement of the value makes a new generation. This
    /// number changes only under the lock.
    ///
    /// Relaxed: a reader gets the value itself under the lock. A vCPU whose access the kernel refused
    /// by a new filter must see the number that was stored before that filter was set. The kernel's own
    /// order guarantees this: it shows the filter to one thread after it took the filter from another
    /// (S7f). Release here would only order earlier memory accesses before the store, and acquire later
    /// ones after the load; neither makes a load see a newer store.
    number: AtomicU64,
    held: Mutex<Held<T>>,
}

struct Held<T> {
    now: Generation<T>,
    /// The highest number that a generation has had so far.
    highest: u64,
}

/// A value that was put in force, and a number that identifies that event.
#[derive(Debug)]
pub(super) struct Generation<T> {
    pub(super) number: u64,
    pub(super) thing: Arc<T>,
    /// The state of this generation's trial: `TRIED` (still on trial), `KEPT` or `WITHDRAWN`.
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

    /// Tells if this generation was withdrawn: its trial was not kept, and the previous value is in force
    /// again. The result may be outdated, unless the caller has got another generation from
    /// [`Published::newer_than`] after this one.
    pub(super) fn is_withdrawn(&self) -> bool {
        // Relaxed: this generation was marked as withdrawn before the other generation came into force, and
        // the caller got the other generation under the lock.
        self.fate.load(Ordering::Relaxed) == WITHDRAWN
    }

    /// Tells if this generation is known to be kept. A generation that is kept is never withdrawn.
    #[inline]
    pub(super) fn is_kept(&self) -> bool {
        // Relaxed: no other memory access depends on this value. Once it is `KEPT`, it does not change
        // again.
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

    /// Puts another value in force; if the trial of that value is not kept, the previous value comes back. A
    /// vCPU that calls [`Self::newer_than`] after this function has returned gets that value or a later one.
    /// There is one trial at a time.
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

    /// Returns the value in force, with the number of its generation.
    pub(super) fn get(&self) -> Generation<T> {
        let held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        held.now.clone()
    }

    /// Tells if the generation in force has this number.
    #[inline]
    pub(super) fn is_number(&self, number: u64) -> bool {
        self.number.load(Ordering::Relaxed) == number
    }

    /// Returns the generation in force, if its number is not that of `have`.
    pub(super) fn newer_than(&self, have: &Generation<T>) -> Option<Generation<T>> {
        if self.is_number(have.number) {
            return None;
        }
        // The number may have gone back to that of `have` since it was read, because a trial was withdrawn.
        Some(self.get()).filter(|now| now.number != have.number)
    }
}

/// The trial of a value that has just been put in force. Dropping the trial withdraws the value.
pub(super) struct Trial<'c, T> {
    current: &'c Published<T>,
    number: u64,
    fate: Arc<AtomicU64>,
    before: Option<Generation<T>>,
}

impl<T> Trial<'_, T> {
    /// The number of the value's generation.
    pub(super) const fn number(&self) -> u64 {
        self.number
    }

    /// Ends the trial so that the value stays in force. Returns the number of the value's generation.
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

    /// Two threads each replace the value, and a vCPU follows. The vCPU sees each of the three values whole.
    /// The vCPU never sees an older value after a newer one, and it sees the last value once both
    /// replacements have ended.
    #[test]
    fn vcpu_never_returns_to_older_program_and_ends_at_last_program() {
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

    /// A program is put in force before its filter is set in the kernel, so a thread that sees the effect of
    /// the new filter also sees the new program. Here a release store stands for setting the filter. If that
    /// store were relaxed, the test would fail, whatever memory ordering the generation's number has.
    #[test]
    fn thread_that_sees_effect_of_new_filter_sees_new_program() {
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

    /// During a trial, a vCPU finds either the value on trial or the previous value, each under its own
    /// number. Once the trial is withdrawn, the vCPU finds the previous value, and sees that the value on
    /// trial was withdrawn.
    #[test]
    fn vcpu_sees_that_program_on_trial_was_withdrawn() {
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
