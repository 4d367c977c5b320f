//! Random filters on the emulator's hardware, compared with the model of the filter.

use std::mem::discriminant;

use msrgate_emulated::{Outcome, Step};
use msrgate_filter::intercept::SvmMap;
use msrgate_filter::{
    Access, Accesses, Bitmap, DefaultAction, Filter, MsrIndex, Range, Revision, Verdict,
};
use msrgate_program::Program;
use msrgate_svm::msrs::wants;

use crate::{has_qemu, steps};

/// The number of filters, each of which is tried on a machine of its own.
const FILTERS: u64 = 20;
/// The number of accesses that each filter decides.
const ACCESSES: u64 = 500;

/// Random numbers, the same in each run (xorshift64).
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % end
    }

    /// An MSR in one of the permission map's three regions, or behind one.
    fn index(&mut self) -> u32 {
        let base = [0, 0xc000_0000, 0xc001_0000][usize::try_from(self.below(3)).unwrap()];
        base + u32::try_from(self.below(0x2100)).unwrap()
    }

    fn filter(&mut self) -> Filter {
        let ranges = (0..self.below(17)).map(|_| {
            let accesses = [Accesses::Read, Accesses::Write, Accesses::Both];
            let accesses = accesses[usize::try_from(self.below(3)).unwrap()];
            let count = u32::try_from(self.below(0x1800)).unwrap() + 1;
            let bits = self.below(u64::MAX);
            let bitmap = Bitmap::from_fn(count, |offset| bits >> (offset % 64) & 1 == 1);
            Range::new(accesses, MsrIndex::new(self.index()), bitmap.unwrap())
        });
        let ranges = ranges.collect();
        let default = [DefaultAction::Allow, DefaultAction::Deny];
        let default = default[usize::try_from(self.below(2)).unwrap()];
        Filter::new(Revision::Mainline, default, ranges).unwrap()
    }
}

#[test]
fn random_filters_decide_on_hardware_as_in_model() {
    if !has_qemu() {
        return;
    }
    let allowing = Program::of_filter(
        Filter::new(Revision::Mainline, DefaultAction::Allow, Vec::new()).unwrap(),
    );
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    for _ in 0..FILTERS {
        let filter = random.filter();
        let tried: Vec<(MsrIndex, Access)> = (0..ACCESSES)
            .map(|_| {
                let access = Access::ALL[usize::try_from(random.below(2)).unwrap()];
                (MsrIndex::new(random.index()), access)
            })
            .collect();
        let script: Vec<_> = tried
            .iter()
            .map(|&(index, access)| match access {
                Access::Read => Step::Read(index.get()),
                Access::Write => Step::Write(index.get(), 0),
            })
            .collect();
        let (outcomes, ran) = steps(&Program::of_filter(filter.clone()), &script);
        let mut map = SvmMap::exit_all();
        map.recompute(wants, |index, access| filter.decide(index, access));
        let denied = |&(index, access): &(MsrIndex, Access)| {
            filter.decide(index, access).verdict == Verdict::Deny
        };
        let (unfiltered, _) = steps(&allowing, &script);
        for ((access, outcome), free) in tried.iter().zip(&outcomes).zip(unfiltered) {
            if denied(access) {
                assert_eq!(*outcome, Outcome::GeneralProtection, "{access:?}");
            } else {
                // The value may be another, for example the time.
                assert_eq!(discriminant(outcome), discriminant(&free), "{access:?}");
            }
        }
        let exits = tried
            .iter()
            .filter(|&&(index, access)| map.intercepts(index, access));
        assert_eq!(ran.exits("msr"), Some(exits.count() as u64));
    }
}
