//! `kvm_run.immediate_exit`, which belongs to the VMM, borrowed for one `KVM_RUN` of ours.
//!
//! A VMM kicks a vCPU by writing a value that is not 0, from any thread or a signal handler, and
//! waits for `KVM_RUN` to return EINTR. To complete an exit without entering the guest (S5.6) a gate
//! needs the same byte. It takes the byte by a swap and gives it back by a compare-and-swap, never
//! by a plain store, so that a kick before, between or after the two is still there for the VMM's
//! own next `KVM_RUN`.

use std::sync::atomic::{AtomicU8, Ordering};

/// Our own value: not one that a VMM writes, so that a kick in between shows. Every kernel takes
/// any value but 0.
const OURS: u8 = 0x80;

/// A byte that threads share: loom has its own.
pub(super) trait Flag {
    fn swap(&self, value: u8) -> u8;

    /// Stores `value` where `current` is.
    fn replace(&self, current: u8, value: u8);
}

impl Flag for AtomicU8 {
    fn swap(&self, value: u8) -> u8 {
        self.swap(value, Ordering::AcqRel)
    }

    fn replace(&self, current: u8, value: u8) {
        let _ = self.compare_exchange(current, value, Ordering::AcqRel, Ordering::Acquire);
    }
}

/// The byte, borrowed.
#[must_use]
pub(super) struct Borrowed {
    before: u8,
}

/// Makes the next `KVM_RUN` of this thread return before it enters the guest.
pub(super) fn borrow(flag: &impl Flag) -> Borrowed {
    Borrowed {
        before: flag.swap(OURS),
    }
}

impl Borrowed {
    /// Gives the byte back: what it was, or the kick that came meanwhile.
    pub(super) fn give_back(self, flag: &impl Flag) {
        // If it fails, the VMM has written what it wants to find there.
        flag.replace(OURS, self.before);
    }
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use super::*;

    #[test]
    fn a_kick_before_between_or_after_is_still_there() {
        let flag = AtomicU8::new(0);
        borrow(&flag).give_back(&flag);
        assert_eq!(flag.load(Ordering::Relaxed), 0);
        flag.store(1, Ordering::Relaxed);
        let borrowed = borrow(&flag);
        assert_eq!(flag.load(Ordering::Relaxed), OURS);
        borrowed.give_back(&flag);
        assert_eq!(flag.load(Ordering::Relaxed), 1, "before");
        flag.store(0, Ordering::Relaxed);
        let borrowed = borrow(&flag);
        flag.store(1, Ordering::Relaxed);
        borrowed.give_back(&flag);
        assert_eq!(flag.load(Ordering::Relaxed), 1, "between");
    }
}

#[cfg(all(test, loom))]
mod model {
    use loom::sync::Arc;
    use loom::sync::atomic::AtomicU8;

    use super::*;

    impl Flag for AtomicU8 {
        fn swap(&self, value: u8) -> u8 {
            self.swap(value, Ordering::AcqRel)
        }

        fn replace(&self, current: u8, value: u8) {
            let _ = self.compare_exchange(current, value, Ordering::AcqRel, Ordering::Acquire);
        }
    }

    /// The VMM's kick at any moment is there in the end.
    #[test]
    fn no_kick_is_lost() {
        crate::gate::sync::check(|| {
            let flag = Arc::new(AtomicU8::new(0));
            let vmm = {
                let flag = Arc::clone(&flag);
                // A VMM stores. Between a store and a read-modify-write of another thread loom sees
                // no order, and so outcomes that no byte in memory has; between two of these it does.
                loom::thread::spawn(move || AtomicU8::swap(&flag, 1, Ordering::Release))
            };
            let borrowed = borrow(&*flag);
            borrowed.give_back(&*flag);
            let _ = vmm.join().unwrap();
            assert_eq!(flag.load(Ordering::Acquire), 1);
        });
    }
}
