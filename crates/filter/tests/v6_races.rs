//! What was wrong with v6's way of replacing a filter (S7), each beside the same test on mainline,
//! where it cannot happen.
//!
//! The first two are shown on the crate's own VM, whose v6 shows guests what the seed's does. The
//! others are about memory that the seed frees by hand, which here nobody can: they are shown on a
//! model of the seed's steps, run through all interleavings, with a ledger of what was freed.

use msrgate_filter::abi::{CallerWidth, Request, Segment, UserAddress};
use msrgate_filter::{
    Access, Accesses, Bitmap, Fallback, Filter, MsrIndex, Range, RegisterMap, Revision, Verdict, Vm,
};

use Verdict::{Allow, Deny};

const FIRST: MsrIndex = MsrIndex::new(0x10);
const SECOND: MsrIndex = MsrIndex::new(0xc000_0080);

fn one(index: MsrIndex, verdict: Verdict) -> Range {
    let allows = |_| verdict == Allow;
    let bitmap = Bitmap::from_fn(1, allows).expect("one MSR");
    Range::new(Accesses::Both, index, bitmap)
}

/// What a guest's read of `index` meets, before a call that sets the very filter that is set, at
/// each moment of it, and after it.
fn during_a_set(filter: &Filter, index: MsrIndex) -> Vec<Verdict> {
    let (argument, bitmaps) = (UserAddress::new(0x1000), UserAddress::new(0x2000));
    let (request, bitmap_bytes) = Request::of(filter, bitmaps);
    let width = CallerWidth::Bits64;
    let bytes = request.encode(width).expect("64-bit pointers reach all");
    let memory = [
        Segment {
            start: argument,
            bytes: &bytes,
        },
        Segment {
            start: bitmaps,
            bytes: &bitmap_bytes,
        },
    ];
    let vm = Vm::new(filter.revision());
    vm.set_filter(filter).expect("the revision is the same");
    let vcpu = vm.create_vcpu(RegisterMap::default());
    let read = || vcpu.decide(index, Access::Read).verdict;
    let mut seen = vec![read()];
    vm.set_msr_filter_watched(width, &memory[..], argument, |_| seen.push(read()))
        .expect("a valid filter");
    seen.push(read());
    seen
}

/// The old and the new filter deny the MSR. Between the two v6 allows all, twice: when the old
/// ranges are gone, and when the new default is there but no range yet.
#[test]
fn s7_v6_allows_everything_between_clear_and_add() {
    let denies = |revision| Filter::new(revision, Fallback::Deny, vec![one(FIRST, Deny)]).unwrap();
    let seen = during_a_set(&denies(Revision::V6), FIRST);
    assert_eq!(seen, [Deny, Allow, Allow, Deny, Deny]);
    let seen = during_a_set(&denies(Revision::V6), SECOND);
    assert_eq!(seen, [Deny, Allow, Allow, Deny, Deny], "the default too");

    let seen = during_a_set(&denies(Revision::Mainline), FIRST);
    assert_eq!(seen, [Deny, Deny, Deny]);
}

/// The old and the new filter allow the second MSR. After the first range is added, and before the
/// second, v6 denies it: a guest that does nothing wrong gets #GP.
#[test]
fn s7_v6_shows_the_half_built_filter_under_the_new_default() {
    let allows = |revision| {
        let ranges = vec![one(FIRST, Allow), one(SECOND, Allow)];
        Filter::new(revision, Fallback::Deny, ranges).unwrap()
    };
    let seen = during_a_set(&allows(Revision::V6), SECOND);
    assert_eq!(seen, [Allow, Allow, Allow, Deny, Allow, Allow]);

    let seen = during_a_set(&allows(Revision::Mainline), SECOND);
    assert_eq!(seen, [Allow, Allow, Allow]);
}

mod seed {
    //! The seed's `kvm_clear_msr_filter`, `kvm_add_msr_filter` and `kvm_msr_allowed`, and
    //! mainline's successors to them, cut where others can get in between.

    use std::collections::BTreeSet;

    use msrgate_filter::Revision;

    /// An allocation.
    type BitmapId = usize;

    /// What went wrong with the memory.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
    pub(crate) enum Wrong {
        /// A bitmap was freed that was free.
        DoubleFree,
        /// A guest's access was decided by a bitmap that was free.
        UseAfterFree,
        /// At the end a bitmap is neither in the filter nor free.
        Leak,
    }

    /// What all look at. `ranges[count..]` holds what was once there: the seed does not clear it.
    #[derive(Clone, Default)]
    struct Kernel {
        ranges: [BitmapId; 2],
        count: usize,
        readers: usize,
        allocated: BitmapId,
        live: BTreeSet<BitmapId>,
        wrong: BTreeSet<Wrong>,
    }

    impl Kernel {
        fn allocate(&mut self) -> BitmapId {
            self.allocated += 1;
            self.live.insert(self.allocated);
            self.allocated
        }

        fn free_all(&mut self, bitmaps: Vec<BitmapId>) {
            for bitmap in bitmaps {
                if !self.live.remove(&bitmap) {
                    self.wrong.insert(Wrong::DoubleFree);
                }
            }
        }

        fn current(&self) -> &[BitmapId] {
            &self.ranges[..self.count]
        }
    }

    /// Someone in the kernel, at his next step.
    #[derive(Clone)]
    pub(crate) enum Actor {
        /// `kvm_clear_msr_filter` is about to read the count, before it takes the lock.
        V6Clear,
        /// It takes the lock, sets the count to 0, copies as many ranges as it counted.
        V6Take { counted: usize },
        /// It waits for readers and frees its copies.
        V6Free { taken: Vec<BitmapId> },
        /// `kvm_add_msr_filter`, under the lock: one range.
        V6Add,
        /// `kvm_msr_allowed` is about to read the count, before it enters the read section.
        V6Count,
        /// It enters.
        V6Enter { counted: usize },
        /// It tests a bit of each range it counted, and leaves.
        V6Test { counted: usize },
        /// Mainline swaps the filter for the new one, under the lock.
        Swap,
        /// It waits for readers and frees the old one.
        FreeOld { old: Vec<BitmapId> },
        /// A reader enters the section.
        Enter,
        /// It loads the filter, tests, and leaves.
        Test,
        /// Gone.
        Done,
    }

    impl Actor {
        pub(crate) const fn setter(revision: Revision) -> Self {
            match revision {
                Revision::V6 => Self::V6Clear,
                Revision::Mainline => Self::Swap,
            }
        }

        pub(crate) const fn reader(revision: Revision) -> Self {
            match revision {
                Revision::V6 => Self::V6Count,
                Revision::Mainline => Self::Enter,
            }
        }

        /// A grace period ends when no reader is in its section.
        fn waits(&self, kernel: &Kernel) -> bool {
            matches!(self, Self::V6Free { .. } | Self::FreeOld { .. }) && kernel.readers > 0
        }

        fn step(self, kernel: &mut Kernel) -> Self {
            match self {
                Self::V6Clear => Self::V6Take {
                    counted: kernel.count,
                },
                Self::V6Take { counted } => {
                    kernel.count = 0;
                    let taken = kernel.ranges[..counted].to_vec();
                    Self::V6Free { taken }
                }
                Self::V6Free { taken } => {
                    kernel.free_all(taken);
                    Self::V6Add
                }
                Self::V6Add => {
                    kernel.ranges[kernel.count] = kernel.allocate();
                    kernel.count += 1;
                    Self::Done
                }
                Self::V6Count => Self::V6Enter {
                    counted: kernel.count,
                },
                Self::V6Enter { counted } => {
                    kernel.readers += 1;
                    Self::V6Test { counted }
                }
                Self::V6Test { counted } => leave(kernel, counted),
                Self::Swap => {
                    let old = kernel.current().to_vec();
                    kernel.ranges[0] = kernel.allocate();
                    kernel.count = 1;
                    Self::FreeOld { old }
                }
                Self::FreeOld { old } => {
                    kernel.free_all(old);
                    Self::Done
                }
                Self::Enter => {
                    kernel.readers += 1;
                    Self::Test
                }
                Self::Test => {
                    let count = kernel.count;
                    leave(kernel, count)
                }
                Self::Done => Self::Done,
            }
        }
    }

    /// Tests the first `counted` ranges and leaves the read section.
    fn leave(kernel: &mut Kernel, counted: usize) -> Actor {
        let freed = |bitmap| !kernel.live.contains(bitmap);
        if kernel.ranges[..counted].iter().any(freed) {
            kernel.wrong.insert(Wrong::UseAfterFree);
        }
        kernel.readers -= 1;
        Actor::Done
    }

    /// All that can go wrong when these run at the same time on a VM with a filter of one range.
    pub(crate) fn interleave(actors: &[Actor]) -> BTreeSet<Wrong> {
        let mut kernel = Kernel::default();
        kernel.ranges[0] = kernel.allocate();
        kernel.count = 1;
        let mut wrong = BTreeSet::new();
        explore(&kernel, actors, &mut wrong);
        wrong
    }

    fn explore(kernel: &Kernel, actors: &[Actor], wrong: &mut BTreeSet<Wrong>) {
        let mut is_over = true;
        for (number, actor) in actors.iter().enumerate() {
            if matches!(actor, Actor::Done) || actor.waits(kernel) {
                continue;
            }
            is_over = false;
            let (mut kernel, mut actors) = (kernel.clone(), actors.to_vec());
            actors[number] = actor.clone().step(&mut kernel);
            explore(&kernel, &actors, wrong);
        }
        if is_over {
            wrong.extend(&kernel.wrong);
            if !kernel.live.iter().eq(kernel.current()) {
                wrong.insert(Wrong::Leak);
            }
        }
    }
}

use seed::{Actor, Wrong, interleave};

/// Alone, v6's setter is fine: it takes two.
#[test]
fn a_setter_alone_is_sound_on_either() {
    for revision in Revision::ALL {
        assert!(interleave(&[Actor::setter(revision)]).is_empty());
    }
}

/// Both read the count before either takes the lock; both then copy the range that is still in the
/// array, though the first has set the count to 0, and both free its bitmap. If one counts after
/// the other has cleared, it loses what the other adds before it gets the lock.
#[test]
fn s7_two_v6_setters_free_twice() {
    let two = |revision| interleave(&[Actor::setter(revision), Actor::setter(revision)]);
    let wrong = two(Revision::V6);
    assert!(wrong.contains(&Wrong::DoubleFree));
    assert!(wrong.contains(&Wrong::Leak));

    assert!(two(Revision::Mainline).is_empty());
}

/// v6's reader reads the count before it enters the section that a setter waits for, and then walks
/// as many ranges, freed or not.
#[test]
fn s7_a_v6_reader_uses_what_was_freed() {
    let both = |revision| interleave(&[Actor::setter(revision), Actor::reader(revision)]);
    assert_eq!(
        both(Revision::V6).into_iter().collect::<Vec<_>>(),
        [Wrong::UseAfterFree]
    );

    assert!(both(Revision::Mainline).is_empty());
}
