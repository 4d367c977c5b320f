//! The accesses of a VM that have been seen.

use msrgate_filter::{Access, MsrIndex};

use super::kinds::{Found, Kind, Kinds};

/// Accesses that a VM remembers to have seen: 64 KiB.
const SEEN: usize = 8192;

/// The (MSR, access) pairs that a VM's guest has touched, by the number of the program. Lock-free: any vCPU
/// may ask and add.
pub(super) struct Seen(Kinds<SEEN>);

/// An access of the VM's guest that was to be told the first time: see
/// [`Gate::first_accesses`](super::Gate::first_accesses).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FirstAccess {
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
        Self(Kinds::new())
    }

    /// Notes an access under the program of this number: what one program let pass in silence may be
    /// what the next one is to tell of.
    pub(super) fn touch(&self, program: u64, index: MsrIndex, access: Access) -> Touch {
        match self.0.find(Kind::new(program, index, access), 64) {
            Found::New(_) => Touch::First,
            Found::Known(_) => Touch::Again,
            Found::NoRoom => Touch::Forgotten,
        }
    }

    /// What was seen under the program of this number, in order.
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
        // One that came while others were taken out may be there twice.
        touched.dedup();
        touched
    }

    /// The program of this number is in force, under which everything is seen anew: what there is of
    /// others makes room.
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
            .map(|(index, access)| FirstAccess { index, access })
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
