//! The accesses of a VM that have been seen.

use std::sync::atomic::{AtomicU64, Ordering};

use msrgate_filter::{Access, MsrIndex};

/// Accesses that a VM remembers to have seen: 64 KiB.
const SEEN: usize = 8192;

/// From which bit on a slot has the program's number.
const PROGRAM: u32 = 34;

/// The (MSR, access) pairs that a VM's guest has touched. Lock-free: any vCPU may ask and add.
pub(super) struct Seen {
    slots: Box<[AtomicU64]>,
}

/// An access of the VM's guest that was to be told the first time: see
/// [`Gate::touched`](super::Gate::touched).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Touched {
    /// To which MSR.
    pub index: MsrIndex,
    /// In which direction.
    pub access: Access,
}

/// Whether an access is the VM's first of its kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Touch {
    First,
    Again,
    /// More kinds than can be remembered have been seen: nobody knows.
    Forgotten,
}

impl Seen {
    pub(super) fn new() -> Self {
        Self {
            slots: (0..SEEN).map(|_| AtomicU64::new(0)).collect(),
        }
    }

    /// Notes an access under the program of this number: what one program let pass in silence may be
    /// what the next one is to tell of.
    pub(super) fn touch(&self, program: u64, index: MsrIndex, access: Access) -> Touch {
        let key = program << PROGRAM | u64::from(index.get()) << 2 | (access as u64) << 1 | 1;
        let home = key.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 51;
        let home = usize::try_from(home).unwrap_or(0);
        for offset in 0..64 {
            let slot = &self.slots[(home + offset) % SEEN];
            let held = slot.load(Ordering::Relaxed);
            if held == key {
                return Touch::Again;
            }
            if held == 0 {
                match slot.compare_exchange(0, key, Ordering::Relaxed, Ordering::Relaxed) {
                    Ok(_) => return Touch::First,
                    Err(other) if other == key => return Touch::Again,
                    Err(_) => {}
                }
            }
        }
        Touch::Forgotten
    }

    /// What was seen under the program of this number, in order.
    pub(super) fn under(&self, program: u64) -> Vec<Touched> {
        let keys = self.slots.iter().map(|slot| slot.load(Ordering::Relaxed));
        let of_it = keys.filter(|key| key & 1 == 1 && key >> PROGRAM == program);
        let mut touched: Vec<_> = of_it.filter_map(Touched::of_key).collect();
        touched.sort_unstable();
        touched
    }

    /// The program of this number is in force, under which everything is seen anew: what there is of
    /// others makes room.
    pub(super) fn begin(&self, program: u64) {
        for slot in &self.slots {
            if slot.load(Ordering::Relaxed) >> PROGRAM != program {
                slot.store(0, Ordering::Relaxed);
            }
        }
    }
}

impl Touched {
    fn of_key(key: u64) -> Option<Self> {
        let index = u32::try_from(key >> 2 & u64::from(u32::MAX)).ok()?;
        let access = usize::from(key & 2 != 0);
        Some(Self {
            index: MsrIndex::new(index),
            access: *Access::ALL.get(access)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn msr(index: u32) -> MsrIndex {
        MsrIndex::new(index)
    }

    #[test]
    fn each_access_is_first_once_and_directions_are_apart() {
        let seen = Seen::new();
        for index in [0, 0x10, 0xc000_0082, u32::MAX] {
            for access in Access::ALL {
                assert_eq!(seen.touch(0, msr(index), access), Touch::First);
                assert_eq!(seen.touch(0, msr(index), access), Touch::Again);
                assert_eq!(seen.touch(1, msr(index), access), Touch::First);
            }
        }
        let all: Vec<_> = [0, 0x10, 0xc000_0082, u32::MAX]
            .into_iter()
            .flat_map(|index| Access::ALL.map(|access| (msr(index), access)))
            .map(|(index, access)| Touched { index, access })
            .collect();
        assert_eq!((seen.under(0), seen.under(1)), (all.clone(), all.clone()));
        assert_eq!(seen.under(2), []);
        seen.begin(1);
        assert_eq!((seen.under(0), seen.under(1)), (vec![], all));
        assert_eq!(seen.touch(1, msr(0), Access::Read), Touch::Again);
        assert_eq!(seen.touch(0, msr(0), Access::Read), Touch::First);
    }

    /// Of threads that touch the same, one is first.
    #[test]
    fn one_vcpu_is_first() {
        let seen = Seen::new();
        let first = || {
            let touches = (0..2000).map(|index| seen.touch(0, msr(index), Access::Read));
            touches.filter(|&touch| touch == Touch::First).count()
        };
        let sum: usize = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(first)).collect();
            threads
                .into_iter()
                .map(|thread| thread.join().unwrap())
                .sum()
        });
        assert_eq!(sum, 2000);
    }

    #[test]
    fn a_guest_that_touches_everything_is_not_remembered() {
        let seen = Seen::new();
        let forgotten = (0..100_000)
            .map(|index| seen.touch(0, msr(index), Access::Read))
            .filter(|&touch| touch == Touch::Forgotten)
            .count();
        assert!(forgotten > 100_000 - SEEN - 1, "{forgotten}");
    }
}
