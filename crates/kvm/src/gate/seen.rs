//! A VM's record of first accesses: the MSRs that its guest has accessed, by direction.

use msrgate_filter::{Access, MsrIndex};

use super::kinds::{Found, Kind, Kinds};

/// The number of first accesses that a VM remembers; the table of them takes 64 KiB.
const SEEN: usize = 8192;

/// A table of the (MSR, direction) pairs that a VM's guest has accessed, each under the number of a program.
/// The table is lock-free: any vCPU may search and add.
pub(super) struct Seen(Kinds<SEEN>);

/// The first access of a VM's guest to an MSR in one direction, under a program that logs first
/// accesses or audits: see [`Gate::first_accesses`](super::Gate::first_accesses).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FirstAccess {
    /// The MSR that the guest accessed.
    pub index: MsrIndex,
    /// The direction of the access: read or write.
    pub access: Access,
}

/// The result of [`Seen::touch`]: the access is the VM's first to this MSR in this direction, or a later
/// one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Touch {
    First,
    Again,
    /// The table has no room for this access, so it is unknown if the access is the first of its kind.
    Forgotten,
}

impl Seen {
    pub(super) fn new() -> Self {
        Self(Kinds::new())
    }

    /// Notes an access under the program of this number. Each program has first accesses of its own: an
    /// access that passed without an event under one program may have to be logged under the next.
    // The function is not inlined: few answers call it, and inlined it would cost all answers registers.
    #[inline(never)]
    pub(super) fn touch(&self, program: u64, index: MsrIndex, access: Access) -> Touch {
        match self.0.find(Kind::new(program, index, access), 64) {
            Found::New(_) => Touch::First,
            Found::Known(_) => Touch::Again,
            Found::NoRoom => Touch::Forgotten,
        }
    }

    /// Returns the first accesses under the program of this number, sorted.
    pub(super) fn under(&self, program: u64) -> Vec<FirstAccess> {
        let of_it = self.0.all().map(|(_, kind)| kind);
        let of_it = of_it.filter(|kind| kind.tag() == program);
        let mut touched: Vec<_> = of_it
            .map(|kind| FirstAccess {
                index: kind.index(),
                access: kind.access(),
            })
            .collect();
        touched.sort_unstable();
        // An access may be in the table twice, if it was added while accesses of other programs were being
        // removed.
        touched.dedup();
        touched
    }

    /// Makes room for the program of this number: removes the accesses under all other programs.
    pub(super) fn begin(&self, program: u64) {
        self.0.retain(|kind| kind.tag() == program);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn msr(index: u32) -> MsrIndex {
        MsrIndex::new(index)
    }

    #[test]
    fn access_of_msr_is_first_once_for_each_direction_and_program() {
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
            .map(|(index, access)| FirstAccess { index, access })
            .collect();
        assert_eq!((seen.under(0), seen.under(1)), (all.clone(), all.clone()));
        assert_eq!(seen.under(2), []);
        seen.begin(1);
        assert_eq!((seen.under(0), seen.under(1)), (vec![], all));
        assert_eq!(seen.touch(1, msr(0), Access::Read), Touch::Again);
        assert_eq!(seen.touch(0, msr(0), Access::Read), Touch::First);
    }

    /// If several threads note the same access at once, `touch` reports the access as the first one to
    /// exactly one of them.
    #[test]
    fn concurrent_equal_accesses_are_first_for_one_thread_only() {
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
    fn touch_of_access_without_room_in_table_returns_forgotten() {
        let seen = Seen::new();
        let forgotten = (0..100_000)
            .map(|index| seen.touch(0, msr(index), Access::Read))
            .filter(|&touch| touch == Touch::Forgotten)
            .count();
        assert!(forgotten > 100_000 - SEEN - 1, "{forgotten}");
    }
}
