use super::*;
use crate::bitmap::Bitmap;
use crate::filter::Filter;
use crate::msr::{Accesses, X2APIC};
use proptest::prelude::*;

/// Decides an access as section S3 of `docs/kvm-semantics.md` says, with a slow and obvious loop over
/// the ranges.
fn oracle(filter: &Filter, index: MsrIndex, access: Access) -> Decision {
    if filter.revision() == Revision::Mainline && X2APIC.contains(&index) {
        return Decision {
            verdict: Verdict::Allow,
            because: Because::X2apic,
        };
    }
    if filter.revision() == Revision::V6 && filter.ranges().is_empty() {
        return Decision {
            verdict: Verdict::Allow,
            because: Because::NoFilter,
        };
    }
    for (number, range) in (0..).zip(filter.ranges()) {
        let base = range.base().get();
        let end = base.wrapping_add(range.bitmap().count());
        if (base..end).contains(&index.get()) && range.accesses().contain(access) {
            let verdict = if range.bitmap().allows(index.get() - base) {
                Verdict::Allow
            } else {
                Verdict::Deny
            };
            return Decision {
                verdict,
                because: Because::Range(RangeNumber::new(number)),
            };
        }
    }
    let verdict = match filter.default_action() {
        DefaultAction::Allow => Verdict::Allow,
        DefaultAction::Deny => Verdict::Deny,
    };
    Decision {
        verdict,
        because: Because::Default,
    }
}

fn base() -> impl Strategy<Value = u32> {
    prop_oneof![
        any::<u32>(),
        0_u32..0x3000,
        0x700_u32..0xa00,
        0xc000_0000_u32..0xc001_4000,
        0xffff_c000_u32..,
        (0_u32..1 << 20, 0_u32..3)
            .prop_map(|(page, past)| (page << PAGE_BITS).wrapping_add(past).wrapping_sub(1)),
    ]
}

fn range() -> impl Strategy<Value = Range> {
    let count = prop_oneof![1_u32..4, 1_u32..200, 1_u32..=Bitmap::MAX_COUNT];
    (1_u32..4, base(), count, any::<u64>()).prop_map(|(flags, base, count, seed)| {
        let bit = |offset: u32| mix(seed ^ u64::from(offset)) & 1 == 1;
        let bitmap = Bitmap::from_fn(count, bit).unwrap();
        Range::new(
            Accesses::from_bits(flags).unwrap(),
            MsrIndex::new(base),
            bitmap,
        )
    })
}

/// Generates random filters that a set call accepts, of either revision.
pub(crate) fn filter() -> impl Strategy<Value = Filter> {
    let revision = prop_oneof![Just(Revision::Mainline), Just(Revision::V6)];
    let default_action = prop_oneof![Just(DefaultAction::Allow), Just(DefaultAction::Deny)];
    (
        revision,
        default_action,
        prop::collection::vec(range(), 0..=MAX_RANGES),
    )
        .prop_filter_map(
            "default deny needs a range",
            |(revision, default_action, ranges)| Filter::new(revision, default_action, ranges).ok(),
        )
}

/// Returns the indices at which the x2APIC registers, a range, a page or a block begins or ends,
/// and the indices next to these.
fn edges(filter: &Filter) -> Vec<u32> {
    let mut edges = vec![0, 0x800, 0x900, u32::MAX];
    for range in filter.ranges() {
        let base = range.base().get();
        let end = base.wrapping_add(range.bitmap().count());
        edges.extend([base, end, base >> PAGE_BITS << PAGE_BITS, base / 64 * 64]);
    }
    let around = |edge: u32| [edge.wrapping_sub(1), edge, edge.wrapping_add(1)];
    edges.into_iter().flat_map(around).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// S3.1 to S3.6: under a random filter, `decide` returns the same decision as the slow loop,
    /// for MSRs within the ranges, at their edges, and anywhere.
    #[test]
    fn filter_decides_as_slow_loop_over_its_ranges(
        filter in filter(),
        picks in prop::collection::vec((any::<prop::sample::Index>(), 0_u32..0x3100), 64),
        anywhere in prop::collection::vec(any::<u32>(), 32),
    ) {
        let inside = picks.iter().filter(|_| !filter.ranges().is_empty()).map(|(pick, offset)| {
            pick.get(filter.ranges()).base().get().wrapping_add(*offset)
        });
        for index in inside.chain(anywhere).chain(edges(&filter)).map(MsrIndex::new) {
            for access in Access::ALL {
                prop_assert_eq!(
                    filter.decide(index, access), oracle(&filter, index, access),
                    "{} {}", access, index
                );
            }
        }
    }
}

/// Creates the filter with the largest lookup: sixteen full ranges, each of which begins in the
/// middle of a block in the middle of a page, and no two on one page.
fn largest(accesses: Accesses) -> Filter {
    let ranges = (0..16)
        .map(|number| {
            let base = MsrIndex::new(0x1000_0000 * number + 0x12_3fe1);
            let bitmap = Bitmap::from_fn(Bitmap::MAX_COUNT, |offset| offset % 5 == 0).unwrap();
            Range::new(accesses, base, bitmap)
        })
        .collect();
    Filter::new(Revision::Mainline, DefaultAction::Deny, ranges).unwrap()
}

#[test]
fn largest_lookup_table_stays_within_max_words_and_documented_footprint() {
    let filter = largest(Accesses::Both);
    assert_eq!(filter.lookup().pages.len(), MAX_WORDS);
    assert!(
        filter.footprint() <= 128 * 1024,
        "{} bytes",
        filter.footprint()
    );
}

#[test]
fn new_filter_frees_spare_capacity_of_its_list_of_ranges() {
    let mut ranges = Vec::with_capacity(1 << 20);
    ranges.extend_from_slice(largest(Accesses::Both).ranges());
    let filter = Filter::new(Revision::Mainline, DefaultAction::Deny, ranges).unwrap();
    assert!(filter.footprint() <= 128 * 1024);
}

/// If sixteen ranges of one MSR each lie in one block of 64 MSRs, `decide` still finds each range.
#[test]
fn decide_finds_each_of_sixteen_adjacent_ranges() {
    let ranges: Vec<_> = (0..16)
        .map(|number| {
            let bitmap = Bitmap::from_fn(1, |_| number % 2 == 0).unwrap();
            Range::new(Accesses::Write, MsrIndex::new(0x100 + 4 * number), bitmap)
        })
        .collect();
    let filter = Filter::new(Revision::Mainline, DefaultAction::Allow, ranges).unwrap();
    for index in (0xc0..0x180).map(MsrIndex::new) {
        for access in Access::ALL {
            assert_eq!(filter.decide(index, access), oracle(&filter, index, access));
        }
    }
}

/// S3.2: without a filter every access is allowed. For an x2APIC register the reason is still that no
/// filter covers it, not that there is no filter.
#[test]
fn decide_without_a_filter_allows_every_access() {
    let cases = [
        (Revision::Mainline, 0x10, Because::NoFilter),
        (Revision::Mainline, 0x8ff, Because::X2apic),
        (Revision::V6, 0x10, Because::NoFilter),
        (Revision::V6, 0x8ff, Because::NoFilter),
    ];
    for (revision, index, because) in cases {
        let decision = Lookup::without_filter(revision).decide(MsrIndex::new(index), Access::Write);
        assert_eq!(
            decision,
            Decision {
                verdict: Verdict::Allow,
                because
            }
        );
    }
}
