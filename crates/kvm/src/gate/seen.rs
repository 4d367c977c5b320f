//! A VM's record of first accesses: the MSRs that its guest has accessed, by direction.

use msrgate_filter::{Access, MsrIndex};
use msrgate_program::answer::Disposition;

use super::kinds::{Found, Kind, Kinds};

/// The number of first accesses that a VM remembers; the table of them takes 64 KiB.
const SEEN: usize = 8192;

/// A table of the kinds of accesses that a VM's guest has made: MSR, direction, and refused or not, each under
/// the number of a program. A refusal counts as such in audit mode, too. The table is lock-free: any vCPU may
/// search and add.
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

/// The result of [`Seen::touch`]: the access is the VM's first of its kind, or a later one.
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
    ///
    /// The first refused access is a first access even if the guest made an allowed one of the same MSR before:
    /// an action such as `pin` refuses some values and takes others.
    // The function is not inlined: few answers call it, and inlined it would cost all answers registers.
    #[inline(never)]
    pub(super) fn touch(
        &self,
        program: u64,
        index: MsrIndex,
        access: Access,
        disposition: Disposition,
    ) -> Touch {
        let tag = program << 1 | u64::from(disposition.is_refusal());
        match self.0.find(Kind::new(tag, index, access), 64) {
            Found::New(_) => Touch::First,
            Found::Known(_) => Touch::Again,
            Found::NoRoom => Touch::Forgotten,
        }
    }

    /// Returns the first accesses under the program of this number, sorted.
    pub(super) fn under(&self, program: u64) -> Vec<FirstAccess> {
        let of_it = self.0.all().map(|(_, kind)| kind);
        let of_it = of_it.filter(|kind| program_of(*kind) == program);
        let mut touched: Vec<_> = of_it
            .map(|kind| FirstAccess {
                index: kind.index(),
                access: kind.access(),
            })
            .collect();
        touched.sort_unstable();
        // An access may be in the table twice: refused and not refused, or if it was added while accesses of
        // other programs were being removed.
        touched.dedup();
        touched
    }

    /// Makes room for the program of this number: removes the accesses under all other programs.
    pub(super) fn begin(&self, program: u64) {
        self.0.retain(|kind| program_of(kind) == program);
    }
}

/// Returns the number of the program under which [`Seen::touch`] has noted this kind.
const fn program_of(kind: Kind) -> u64 {
    kind.tag() >> 1
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn msr(index: u32) -> MsrIndex {
        MsrIndex::new(index)
    }

    fn touch(seen: &Seen, program: u64, index: u32, access: Access) -> Touch {
        seen.touch(program, msr(index), access, Disposition::Allowed)
    }

    #[test]
    fn first_refused_access_is_first_after_allowed_access_of_same_msr() {
        use Disposition::{Allowed, Denied, Pinned, WouldDeny};
        let seen = Seen::new();
        let of = |disposition| seen.touch(7, msr(0x10), Access::Write, disposition);
        let touches = [Pinned, Allowed, WouldDeny, Denied, Pinned].map(of);
        let [first, again] = [Touch::First, Touch::Again];
        assert_eq!(touches, [first, again, first, again, again]);
        let access = FirstAccess {
            index: msr(0x10),
            access: Access::Write,
        };
        assert_eq!(seen.under(7), [access]);
        seen.begin(8);
        assert_eq!(of(Denied), Touch::First);
    }

    #[test]
    fn access_of_msr_is_first_once_for_each_direction_and_program() {
        let seen = Seen::new();
        for index in [0, 0x10, 0xc000_0082, u32::MAX] {
            for access in Access::ALL {
                assert_eq!(touch(&seen, 0, index, access), Touch::First);
                assert_eq!(touch(&seen, 0, index, access), Touch::Again);
                assert_eq!(touch(&seen, 1, index, access), Touch::First);
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
        assert_eq!(touch(&seen, 1, 0, Access::Read), Touch::Again);
        assert_eq!(touch(&seen, 0, 0, Access::Read), Touch::First);
    }

    /// If several threads note the same access at once, `touch` reports the access as the first one to
    /// exactly one of them.
    #[test]
    fn concurrent_equal_accesses_are_first_for_one_thread_only() {
        let seen = Seen::new();
        let first = || {
            let touches = (0..2000).map(|index| touch(&seen, 0, index, Access::Read));
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
            .map(|index| touch(&seen, 0, index, Access::Read))
            .filter(|&touch| touch == Touch::Forgotten)
            .count();
        assert!(forgotten > 100_000 - SEEN - 1, "{forgotten}");
    }
}
