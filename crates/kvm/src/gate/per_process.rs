//! Unsafe: a pointer that each process replaces by its own.
//!
//! A static value that each process has for itself. A forked child has a copy of its parent's memory, in
//! which a lock that another thread held during the fork is held for ever.
#![expect(unsafe_code, reason = "a pointer to a value that is never dropped")]

use std::process;
use std::ptr;
use std::sync::atomic::{AtomicPtr, Ordering};

/// A value that each process makes when it first asks for it.
pub(super) struct PerProcess<T>(AtomicPtr<Of<T>>);

struct Of<T> {
    process: u32,
    value: T,
}

impl<T: Default + Send + Sync + 'static> PerProcess<T> {
    pub(super) const fn new() -> Self {
        Self(AtomicPtr::new(ptr::null_mut()))
    }

    /// Returns this process's value. A forked child never frees the copy that it has of its parent's value.
    pub(super) fn get(&self) -> &'static T {
        self.of(process::id())
    }

    fn of(&self, process: u32) -> &'static T {
        let mut held = self.0.load(Ordering::Acquire);
        loop {
            // SAFETY: the pointer is null, or to a value that was leaked below.
            if let Some(of) = unsafe { held.as_ref() }
                && of.process == process
            {
                return &of.value;
            }
            let new = Box::into_raw(Box::new(Of {
                process,
                value: T::default(),
            }));
            let set = self
                .0
                .compare_exchange(held, new, Ordering::AcqRel, Ordering::Acquire);
            held = match set {
                Ok(_) => new,
                Err(other) => {
                    // SAFETY: the box was made above, and no other thread has seen it.
                    drop(unsafe { Box::from_raw(new) });
                    other
                }
            };
        }
    }
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use std::sync::Mutex;

    use super::*;

    /// A thread of the parent holds the lock in the parent's value when the forked child asks for its own
    /// value.
    #[test]
    fn forked_child_gets_value_whose_lock_is_free() {
        static COUNT: PerProcess<Mutex<u32>> = PerProcess::new();
        let mut held = COUNT.of(1).lock().unwrap();
        *held = 7;
        assert_eq!(*COUNT.of(2).lock().unwrap(), 0);
        *COUNT.of(2).lock().unwrap() += 1;
        assert_eq!(*COUNT.of(2).lock().unwrap(), 1);
    }
}
