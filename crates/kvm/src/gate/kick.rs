//! The byte `kvm_run.immediate_exit`, which belongs to the VMM and which the gate borrows for one
//! `KVM_RUN`.
//!
//! A VMM kicks a vCPU by writing a value other than 0, from any thread or a signal handler, and waits
//! for `KVM_RUN` to return EINTR. To complete an exit without entering the guest (S5.6), a gate has to set
//! the byte `immediate_exit`, too. The gate takes the byte by a swap and gives it back by a
//! compare-and-swap, never by a plain store. So a kick before, between or after these two operations is
//! still in the byte for the VMM's next `KVM_RUN`.

use std::sync::atomic::{AtomicU8, Ordering};

/// The value that the gate writes to the byte `immediate_exit`. A VMM writes other values, so the gate can
/// tell if a kick came while the gate had borrowed the byte. Every kernel treats all values other than 0
/// alike.
const OURS: u8 = 0x80;

/// A byte that several threads access atomically. Tests under loom use loom's own type for it.
pub(super) trait Flag {
    fn swap(&self, value: u8) -> u8;

    /// Stores `value` if the byte is `current`.
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

/// The byte `kvm_run.immediate_exit` while the gate has borrowed it from the VMM.
#[must_use]
pub(super) struct Borrowed {
    before: u8,
}

/// Borrows the byte `immediate_exit` from the VMM, so that the next `KVM_RUN` of this thread returns before
/// it enters the guest.
pub(super) fn borrow(flag: &impl Flag) -> Borrowed {
    Borrowed {
        before: flag.swap(OURS),
    }
}

impl Borrowed {
    /// Gives the byte its old value again. If a kick came in the meantime, the kick stays in the byte.
    pub(super) fn give_back(self, flag: &impl Flag) {
        // If the byte is not `OURS`, the VMM has kicked the vCPU in the meantime, and the kick stays.
        flag.replace(OURS, self.before);
    }
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use super::*;

    #[test]
    fn give_back_of_immediate_exit_keeps_kick_made_before_or_during_borrow() {
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

    /// A kick that comes at any moment is still in the byte `immediate_exit` after the gate has given the
    /// byte back.
    #[test]
    fn give_back_of_immediate_exit_keeps_kick_made_at_any_moment() {
        crate::gate::sync::check(|| {
            let flag = Arc::new(AtomicU8::new(0));
            let vmm = {
                let flag = Arc::clone(&flag);
                // A VMM kicks by a store, but this test kicks by a swap. Loom sees no order between a store
                // and a read-modify-write of another thread, so with a store it would show outcomes that no
                // byte in memory has. Loom does order two read-modify-writes.
                loom::thread::spawn(move || AtomicU8::swap(&flag, 1, Ordering::Release))
            };
            let borrowed = borrow(&*flag);
            borrowed.give_back(&*flag);
            let _ = vmm.join().unwrap();
            assert_eq!(flag.load(Ordering::Acquire), 1);
        });
    }
}
