use alloc::vec::Vec;

use proptest::prelude::*;

use super::*;
use crate::bitmap::Bitmap;
use crate::decide::Because;
use crate::filter::Filter;
use crate::msr::Accesses;
use crate::range::{DefaultAction, Range};
use crate::revision::Revision;

const VMX_BASES: [u32; 2] = [0, 0xc000_0000];
const SVM_BASES: [u32; 3] = [0, 0xc000_0000, 0xc001_0000];

/// The positions of the bits in a vendor's bitmap, taken from the vendor's manual and not from the table
/// in the code under test.
trait Oracle: Layout {
    const BASES: &[u32];
    fn bit(region: usize, offset: usize, access: Access) -> usize;
}

impl Oracle for Vmx {
    const BASES: &[u32] = &VMX_BASES;
    fn bit(region: usize, offset: usize, access: Access) -> usize {
        let kib = match (access, region) {
            (Access::Read, 0) => 0,
            (Access::Read, _) => 1,
            (Access::Write, 0) => 2,
            (Access::Write, _) => 3,
        };
        kib * 1024 * 8 + offset
    }
}

impl Oracle for Svm {
    const BASES: &[u32] = &SVM_BASES;
    fn bit(region: usize, offset: usize, access: Access) -> usize {
        region * 2048 * 8 + 2 * offset + usize::from(access == Access::Write)
    }
}

fn allow_all(_: MsrIndex, _: Access) -> Decision {
    verdict(Verdict::Allow)
}

fn want_all(_: MsrIndex, _: Access) -> PassThrough {
    PassThrough::Wanted
}

fn verdict(verdict: Verdict) -> Decision {
    Decision {
        verdict,
        because: Because::Default,
    }
}

fn computed<L: Layout>(
    wants: impl Fn(MsrIndex, Access) -> PassThrough,
    decide: impl Fn(MsrIndex, Access) -> Decision,
) -> InterceptMap<L> {
    let mut map = InterceptMap::exit_all();
    map.recompute(wants, decide);
    map
}

/// Returns a function that returns `here` for the access `wanted`, and `elsewhere` for every other access.
fn only(
    wanted: (MsrIndex, Access),
    here: Verdict,
    elsewhere: Verdict,
) -> impl Fn(MsrIndex, Access) -> Decision {
    move |index, access| {
        verdict(if (index, access) == wanted {
            here
        } else {
            elsewhere
        })
    }
}

/// S6.1, S6.2: the first two and the last two MSRs of each region have a bit of their own for each
/// direction, where the manual puts it. The bit is tested as the only 0 and as the only 1 of a bitmap.
fn every_edge_has_its_bit<L: Oracle>() {
    for (region, &base) in L::BASES.iter().enumerate() {
        for (access, offset) in Access::ALL
            .into_iter()
            .flat_map(|access| [0, 1, 0x1ffe, 0x1fff].map(|offset| (access, offset)))
        {
            let index = MsrIndex::new(base + offset);
            let bit = L::bit(region, offset as usize, access);

            let passes = only((index, access), Verdict::Allow, Verdict::Deny);
            let map = computed::<L>(|_, _| PassThrough::Wanted, passes);
            assert!(!map.intercepts(index, access), "{access} {index}");
            let bytes = map.as_bytes().as_ref();
            assert_eq!(bytes[bit / 8] >> (bit % 8) & 1, 0, "{access} {index}");
            assert_eq!(passing_but_x2apic(&map), 1, "{access} {index}");

            let exits = only((index, access), Verdict::Deny, Verdict::Allow);
            let map = computed::<L>(|_, _| PassThrough::Wanted, exits);
            assert!(map.intercepts(index, access), "{access} {index}");
            let bytes = map.as_bytes().as_ref();
            assert_eq!(bytes[bit / 8] >> (bit % 8) & 1, 1, "{access} {index}");
            let all = L::BASES.len() * 2 * 0x2000;
            assert_eq!(passing(&map), all - 1, "{access} {index}");
        }
    }
}

fn passing<L: Layout>(map: &InterceptMap<L>) -> usize {
    let bytes = map.as_bytes().as_ref();
    bytes.iter().map(|byte| byte.count_zeros() as usize).sum()
}

/// Returns the number of accesses that pass, without the accesses to the 0x100 x2APIC registers: the
/// filter does not affect these accesses.
fn passing_but_x2apic<L: Layout>(map: &InterceptMap<L>) -> usize {
    passing(map) - 2 * 0x100
}

#[test]
fn vmx_bits_at_region_edges_are_where_the_manual_puts_them() {
    every_edge_has_its_bit::<Vmx>();
}

#[test]
fn svm_bits_at_region_edges_are_where_the_manual_puts_them() {
    every_edge_has_its_bit::<Svm>();
}

/// S6.1, S6.2: accesses to the MSRs directly before and after a region always exit, even if the map
/// passes every access to the MSRs in its regions.
#[test]
fn access_to_msr_outside_all_bitmap_regions_always_exits() {
    let vmx = computed::<Vmx>(want_all, allow_all);
    let svm = computed::<Svm>(want_all, allow_all);
    let outside_of_both = [
        0x2000,
        0xbfff_ffff,
        0xc000_2000,
        0xc000_ffff,
        0xc001_2000,
        0x4000_0000,
        u32::MAX,
    ];
    for access in Access::ALL {
        for index in outside_of_both.map(MsrIndex::new) {
            assert!(vmx.intercepts(index, access), "{access} {index}");
            assert!(svm.intercepts(index, access), "{access} {index}");
        }
        for index in [0xc001_0000, 0xc001_1fff].map(MsrIndex::new) {
            assert!(vmx.intercepts(index, access), "{access} {index}");
            assert!(!svm.intercepts(index, access), "{access} {index}");
        }
    }
}

/// S6.2: the last 2 KiB of the SVM map are ones. All other bits are 0 if every access passes.
#[test]
fn reserved_bytes_of_svm_map_stay_ones() {
    let map = computed::<Svm>(want_all, allow_all);
    let (used, reserved) = map.as_bytes().split_at(0x1800);
    assert!(used.iter().all(|&byte| byte == 0));
    assert!(reserved.iter().all(|&byte| byte == 0xff));
    let page = computed::<Vmx>(want_all, allow_all);
    assert!(page.as_bytes().iter().all(|&byte| byte == 0));
}

/// S6.3: an access passes only if the hypervisor wants it to and the filter allows it.
#[test]
fn recomputed_intercept_map_passes_accesses_that_hypervisor_wants_and_filter_allows() {
    let index = MsrIndex::new(0x10);
    for wanted in [PassThrough::Wanted, PassThrough::Unwanted] {
        for allowed in [Verdict::Allow, Verdict::Deny] {
            let map = computed::<Vmx>(|_, _| wanted, |_, _| verdict(allowed));
            let passes = (wanted, allowed) == (PassThrough::Wanted, Verdict::Allow);
            assert_eq!(map.intercepts(index, Access::Read), !passes);
        }
    }
}

/// S6.4: the filter does not affect x2APIC registers, and `recompute` does not ask it about them.
#[test]
fn recompute_of_intercept_map_ignores_filter_for_x2apic() {
    let edges = [(0x7ff, true), (0x800, false), (0x8ff, false), (0x900, true)];
    for access in Access::ALL {
        let decide = |index: MsrIndex, _| {
            assert!(!X2APIC.contains(&index), "asked about {index}");
            verdict(Verdict::Deny)
        };
        let vmx = computed::<Vmx>(want_all, decide);
        let svm = computed::<Svm>(want_all, decide);
        let closed = computed::<Vmx>(|_, _| PassThrough::Unwanted, allow_all);
        for (index, exits) in edges.map(|(index, exits)| (MsrIndex::new(index), exits)) {
            assert_eq!(vmx.intercepts(index, access), exits, "{access} {index}");
            assert_eq!(svm.intercepts(index, access), exits, "{access} {index}");
            assert!(closed.intercepts(index, access), "{access} {index}");
        }
    }
}

/// S6.3: `recompute` sets every bit of the map, so that no bit of an earlier computation remains.
#[test]
fn recompute_of_intercept_map_leaves_no_bit_of_an_earlier_computation() {
    let mut map = SvmMap::exit_all();
    map.recompute(want_all, allow_all);
    map.recompute(|_, _| PassThrough::Unwanted, allow_all);
    assert_eq!(map, SvmMap::exit_all());
    assert_eq!(map, SvmMap::default());
}

/// Both maps have the size that the manuals say, and begin at a page: the processor takes only a
/// physical address whose low 12 bits are 0.
#[test]
fn intercept_maps_have_the_size_of_the_manuals_and_page_alignment() {
    assert_eq!(
        (size_of::<VmxBitmap>(), align_of::<VmxBitmap>()),
        (4096, 4096)
    );
    assert_eq!((size_of::<SvmMap>(), align_of::<SvmMap>()), (8192, 4096));
}

#[test]
fn debug_of_intercept_map_shows_number_of_passing_accesses() {
    let map = computed::<Vmx>(want_all, allow_all);
    assert_eq!(alloc::format!("{map:?}"), "VmxBitmap(32768 accesses pass)");
}

fn random(seed: u64, index: MsrIndex, access: Access) -> bool {
    let mut bits = seed ^ u64::from(index.get()) << 1 ^ access as u64;
    for _ in 0..3 {
        bits = (bits ^ bits >> 29).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    }
    bits >> 63 == 1
}

fn wants(seed: u64) -> impl Fn(MsrIndex, Access) -> PassThrough {
    move |index, access| {
        if random(seed, index, access) {
            PassThrough::Wanted
        } else {
            PassThrough::Unwanted
        }
    }
}

/// Creates a filter whose ranges cross the edges of the MSR regions that the hardware bitmaps cover.
fn filter(seed: u64) -> Filter {
    let bases = [
        0,
        0x1f00,
        0xc000_0000,
        0xc000_1f00,
        0xc001_0000,
        0xc001_1f00,
    ];
    let ranges = bases
        .into_iter()
        .zip(
            [Accesses::Both, Accesses::Read, Accesses::Write]
                .into_iter()
                .cycle(),
        )
        .map(|(base, accesses)| {
            let bit = |offset| random(!seed, MsrIndex::new(base + offset), Access::Read);
            let bitmap = Bitmap::from_fn(0x1234, bit).unwrap();
            Range::new(accesses, MsrIndex::new(base), bitmap)
        })
        .collect();
    Filter::new(Revision::Mainline, DefaultAction::Allow, ranges).unwrap()
}

/// Computes the whole map bit by bit, as the statements S6.3 and S6.4 of `docs/kvm-semantics.md` say.
fn oracle<L: Oracle>(wants: impl Fn(MsrIndex, Access) -> PassThrough, filter: &Filter) -> Vec<u8> {
    let mut bytes = InterceptMap::<L>::exit_all().as_bytes().as_ref().to_vec();
    for (region, &base) in L::BASES.iter().enumerate() {
        for offset in 0..0x2000 {
            for access in Access::ALL {
                let index = MsrIndex::new(base + offset);
                let allowed = (0x800..0x900).contains(&index.get())
                    || filter.decide(index, access).verdict == Verdict::Allow;
                if allowed && wants(index, access) == PassThrough::Wanted {
                    let bit = L::bit(region, offset as usize, access);
                    bytes[bit / 8] -= 1 << (bit % 8);
                }
            }
        }
    }
    bytes
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// S6.1 to S6.4: under a random filter, every bit of both maps is as a slow and obvious loop
    /// computes it.
    #[test]
    fn recompute_of_intercept_map_matches_slow_loop_over_all_bits(seed: u64) {
        let filter = filter(seed);
        let decide = |index, access| filter.decide(index, access);
        let vmx = computed::<Vmx>(wants(seed), decide);
        let svm = computed::<Svm>(wants(seed), decide);
        prop_assert!(vmx.as_bytes()[..] == oracle::<Vmx>(wants(seed), &filter));
        prop_assert!(svm.as_bytes()[..] == oracle::<Svm>(wants(seed), &filter));
    }

    /// S6.5: an access exits under the merged map if it exits under either map. If one map intercepts
    /// nothing, the merged map equals the other map.
    #[test]
    fn merged_intercept_map_intercepts_each_access_that_either_map_intercepts(one: u64, other: u64) {
        let level1 = computed::<Svm>(wants(one), allow_all);
        let level0 = computed::<Svm>(wants(other), allow_all);
        let merged = level1.merged_with(&level0);
        for index in SVM_BASES.into_iter().flat_map(|base| base..base + 0x2001).map(MsrIndex::new) {
            for access in Access::ALL {
                let either = level1.intercepts(index, access) || level0.intercepts(index, access);
                prop_assert_eq!(merged.intercepts(index, access), either);
            }
        }
        let open = SvmMap::from_bytes([0; 0x2000]);
        prop_assert!(level1.merged_with(&open) == level1);
    }
}
